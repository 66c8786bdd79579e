# What every pod that the chart renders must keep to. The input is one render: `objects`, and `queues`, those of docs/queue.md.
package smalti

import rego.v1

workloads contains {"name": name, "labels": object.get(each.metadata, "labels", {}), "spec": each.spec} if {
	some each in input.objects
	each.kind == "Pod"
	name := sprintf("%s %s", [each.kind, each.metadata.name])
}

workloads contains {"name": name, "labels": each.spec.template.metadata.labels, "spec": each.spec.template.spec} if {
	some each in input.objects
	each.kind in {"Deployment", "StatefulSet", "Job"}
	name := sprintf("%s %s", [each.kind, each.metadata.name])
}

# A LeaderWorkerSet whose leader has a template of its own has two.
workloads contains {"name": name, "labels": template.metadata.labels, "spec": template.spec} if {
	some each in input.objects
	each.kind == "LeaderWorkerSet"
	some key in ["leaderTemplate", "workerTemplate"]
	template := object.get(each.spec.leaderWorkerTemplate, key, null)
	template != null
	name := sprintf("%s %s", [each.kind, each.metadata.name])
}

containers contains {"of": each.name, "name": one.name, "container": one, "spec": each.spec} if {
	some each in workloads
	some key in ["containers", "initContainers"]
	some one in object.get(each.spec, key, [])
}

deny contains sprintf("%s: automountServiceAccountToken must be false", [each.name]) if {
	some each in workloads
	object.get(each.spec, "automountServiceAccountToken", true) != false
}

deny contains sprintf("%s: enableServiceLinks must be false", [each.name]) if {
	some each in workloads
	object.get(each.spec, "enableServiceLinks", true) != false
}

deny contains sprintf("%s: must run as a user that is not root, with the default seccomp profile", [each.name]) if {
	some each in workloads
	not confined(object.get(each.spec, "securityContext", {}))
}

confined(security) if {
	security.runAsNonRoot == true
	security.runAsUser > 0
	security.seccompProfile.type == "RuntimeDefault"
}

deny contains sprintf("%s: %s: must have a read-only root and no rights", [each.of, each.name]) if {
	some each in containers
	not locked(object.get(each.container, "securityContext", {}))
}

locked(security) if {
	security.readOnlyRootFilesystem == true
	security.allowPrivilegeEscalation == false
	security.capabilities == {"drop": ["ALL"]}
}

deny contains sprintf("%s: %s: must have a limit of memory and a request of cpu", [each.of, each.name]) if {
	some each in containers
	not each.container.resources.limits.memory
}

deny contains sprintf("%s: %s: must have a limit of memory and a request of cpu", [each.of, each.name]) if {
	some each in containers
	not each.container.resources.requests.cpu
}

# A service says how long it takes to end; SIGTERM comes after preStop, and SIGKILL when the grace is over.
graces := ["SMALTI_SERVICE_GRACE", "SMALTI_WEB_GRACE"]

served contains object.union(each, {"grace": to_number(variable.value)}) if {
	some each in containers
	some variable in object.get(each.container, "env", [])
	variable.name in graces
}

deny contains sprintf("%s: must have preStop, and a grace longer than it and the service's own", [each.of]) if {
	some each in served
	not ends_in_time(each)
}

ends_in_time(each) if {
	each.spec.terminationGracePeriodSeconds > each.container.lifecycle.preStop.sleep.seconds + each.grace
}

deny contains sprintf("%s: no NetworkPolicy for both directions selects it", [each.name]) if {
	some each in workloads
	not guarded(each.labels)
}

guarded(labels) if {
	some policy in input.objects
	policy.kind == "NetworkPolicy"
	{"Ingress", "Egress"} == {kind | some kind in policy.spec.policyTypes}
	not policy.spec.podSelector.matchExpressions
	every key, value in object.get(policy.spec.podSelector, "matchLabels", {}) {
		labels[key] == value
	}
}

deny contains sprintf("%s: %s: %s must come from a secret", [each.of, each.name, variable.name]) if {
	some each in containers
	some variable in object.get(each.container, "env", [])
	regex.match(`PASSWORD|SECRET_KEY|ACCESS_KEY|SIGNING_KEY|_KEY$|TOKEN|BROKER_URL$|GATEWAY_DATABASE$`, variable.name)
	not endswith(variable.name, "_FILE")
	not regex.match(`^/run/`, object.get(variable, "value", "/run/"))
}

deny contains sprintf("%s: %s: %s has a password in its value", [each.of, each.name, variable.name]) if {
	some each in containers
	some variable in object.get(each.container, "env", [])
	regex.match(`://[^/]*:[^/]*@`, object.get(variable, "value", ""))
}
