{{/*
Refuses a secret that is not in the cluster, or lacks a key; asked only where Helm talks with a cluster and the namespace is
there, which its own account tells. `root`, the `value` that names it, its `name` and its `keys`.
*/}}
{{- define "smalti.needSecret" -}}
{{- $space := .root.Release.Namespace -}}
{{- if and .name .root.Values.checkSecrets (lookup "v1" "ServiceAccount" $space "default") -}}
{{- $secret := lookup "v1" "Secret" $space .name -}}
{{- if not $secret -}}
{{- fail (printf "%s: there is no secret %s in namespace %s; make it first, or set checkSecrets to false" .value .name $space) -}}
{{- end -}}
{{- range $key := .keys -}}
{{- if not (hasKey ($secret.data | default dict) $key) -}}
{{- fail (printf "%s: secret %s in namespace %s has no key %s" $.value $.name $space $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "smalti.needSecrets" -}}
{{- $v := .Values -}}
{{- $ca := list "ca.crt" -}}
{{- $tls := list "tls.crt" "tls.key" "ca.crt" -}}
{{- $own := eq $v.tls.internal.source "secrets" -}}
{{- $named := list
  (list "broker.existingSecret" $v.broker.existingSecret (list "SMALTI_BROKER_URL"))
  (list "broker.caSecret" $v.broker.caSecret $ca)
  (list "objectStore.existingSecret" $v.objectStore.existingSecret (list "SMALTI_STORE_ACCESS_KEY" "SMALTI_STORE_SECRET_KEY"))
  (list "objectStore.caSecret" $v.objectStore.caSecret $ca)
  (list "database.existingSecret" $v.database.existingSecret (list "SMALTI_GATEWAY_DATABASE"))
  (list "database.caSecret" $v.database.caSecret $ca)
  (list "web.existingSecret" (ternary $v.web.existingSecret "" $v.web.enabled) (list "SMALTI_WEB_SIGNING_KEY"))
  (list "tls.internal.gatewaySecret" (ternary $v.tls.internal.gatewaySecret "" $own) $tls)
  (list "tls.internal.stagesSecret" (ternary $v.tls.internal.stagesSecret "" $own) $tls)
  (list "tls.internal.webSecret" (ternary $v.tls.internal.webSecret "" $own) $tls)
  (list "autoscaling.rabbitmqSecret" (ternary $v.autoscaling.rabbitmqSecret "" (eq $v.autoscaling.kind "keda")) (list "host"))
-}}
{{- range $named -}}
{{- include "smalti.needSecret" (dict "root" $ "value" (index . 0) "name" (index . 1) "keys" (index . 2)) -}}
{{- end -}}
{{- end -}}

{{/* What a schema cannot say, in one line each. */}}
{{- define "smalti.validate" -}}
{{- $v := .Values -}}
{{- if not (or $v.broker.existingSecret $v.broker.small.enabled) -}}
{{- fail "broker.existingSecret: is not set; name a secret with SMALTI_BROKER_URL, or set broker.small.enabled for trying" -}}
{{- end -}}
{{- if not (or $v.database.existingSecret $v.database.small.enabled) -}}
{{- fail "database.existingSecret: is not set; name a secret with SMALTI_GATEWAY_DATABASE, or set database.small.enabled for trying" -}}
{{- end -}}
{{- if and (not $v.objectStore.small.enabled) (or (not $v.objectStore.url) (not $v.objectStore.existingSecret)) -}}
{{- fail "objectStore.url, objectStore.existingSecret: are not set; set both, or objectStore.small.enabled for trying" -}}
{{- end -}}
{{- $small := or $v.broker.small.enabled $v.database.small.enabled $v.objectStore.small.enabled -}}
{{- if and $small (not $v.tls.plaintext) -}}
{{- fail "tls.plaintext: must be true with the small broker, store or database of the chart, which have no TLS" -}}
{{- end -}}
{{- if and (contains "mtls" $v.gateway.auth) (eq $v.tls.internal.source "plaintext") -}}
{{- fail "gateway.auth: mtls needs tls.internal.source certManager or secrets" -}}
{{- end -}}
{{- if and (eq $v.tls.internal.source "certManager") (not $v.tls.internal.issuerRef.name) -}}
{{- fail "tls.internal.issuerRef.name: is not set; name an issuer of cert-manager" -}}
{{- end -}}
{{- if eq $v.tls.internal.source "secrets" -}}
{{- range list "gatewaySecret" "stagesSecret" "webSecret" -}}
{{- if not (index $v.tls.internal .) -}}{{- fail (printf "tls.internal.%s: is not set; name a secret with tls.crt, tls.key and ca.crt" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.web.enabled (contains "keys" $v.gateway.auth) (not $v.web.existingSecret) -}}
{{- fail "web.existingSecret: is not set; name a secret with SMALTI_WEB_SIGNING_KEY and SMALTI_WEB_KEY, which the web service needs where the gateway wants keys" -}}
{{- end -}}
{{- if and $v.web.enabled (gt (int $v.web.replicas) 1) (not $v.web.existingSecret) -}}
{{- fail "web.existingSecret: is not set; name a secret with SMALTI_WEB_SIGNING_KEY, which several web services share, or set web.replicas to 1" -}}
{{- end -}}
{{- if eq $v.autoscaling.kind "keda" -}}
{{- if and (eq $v.broker.kind "rabbitmq") (not $v.autoscaling.rabbitmqSecret) -}}
{{- fail "autoscaling.rabbitmqSecret: is not set; name a secret with the URL of RabbitMQ's HTTP API as host" -}}
{{- end -}}
{{- if and (eq $v.broker.kind "valkey") (not $v.autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus: is not set; with Valkey, KEDA scales by metrics of Smalti" -}}
{{- end -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: is not set; set the host at which clients reach the web service" -}}
{{- end -}}
{{- if and $v.gatewayApi.enabled (not $v.gatewayApi.parentRefs) -}}
{{- fail "gatewayApi.parentRefs: is empty; name the Gateway that the routes belong to" -}}
{{- end -}}
{{- $names := dict -}}
{{- $all := list -}}
{{- range $v.models -}}{{- $all = append $all .name -}}{{- end -}}
{{- range $index, $model := $v.models -}}
{{- if hasKey $names $model.name -}}{{- fail (printf "models[%d].name: %s is given twice" $index $model.name) -}}{{- end -}}
{{- $_ := set $names $model.name true -}}
{{- if ne (len $model.source) 1 -}}{{- fail (printf "models[%d].source: must have exactly one of shipped, hub, s3, claim and image" $index) -}}{{- end -}}
{{- range $name := list "encoder" "generator" "decoder" "ranker" "refiner" -}}
{{- $service := include "smalti.service" (dict "root" $ "model" $model "name" $name) | fromYaml -}}
{{- $accelerator := $service.accelerator | default (dict "kind" "none") -}}
{{- if and (eq $accelerator.kind "tpu") (or (not $accelerator.type) (not $accelerator.topology)) -}}
{{- fail (printf "services.%s.accelerator: a tpu needs type and topology, such as tpu-v6e-slice and 1x1" $name) -}}
{{- end -}}
{{- $batch := $service.batch | default dict -}}
{{- $works := include "smalti.works" (dict "root" $ "service" $service) | fromYamlArray -}}
{{- if and $batch.maxReplicas (eq $v.autoscaling.kind "none") -}}
{{- fail (printf "services.%s.batch.maxReplicas: needs autoscaling.kind keda or hpa; set services.%s.batch.replicas" $name $name) -}}
{{- end -}}
{{- if and (has "interactive" $works) (not (has "batch" $works)) -}}
{{- fail (printf "services.%s.batch.shared: is false, and no worker takes batches; set services.%s.batch.replicas, or maxReplicas with autoscaling" $name $name) -}}
{{- end -}}
{{- if and (has "interactive" $works) (eq $v.autoscaling.kind "keda") (eq $v.broker.kind "valkey") (not $batch.minReplicas) -}}
{{- fail (printf "services.%s.batch.minReplicas: must be 1 or more where shared is false and the broker is Valkey, in which KEDA cannot count jobs with the priority of batches" $name) -}}
{{- end -}}
{{- if and (has "batch" $works) (has (printf "%s-batch" $model.name) $all) -}}
{{- fail (printf "models[%d].name: %s has workers for batches, which would be named as those of %s-batch" $index $model.name $model.name) -}}
{{- end -}}
{{- if and (ne $name "generator") (or $service.group $service.mesh $batch.group $batch.mesh) -}}
{{- fail (printf "services.%s: only a generator has mesh and group" $name) -}}
{{- end -}}
{{- if and $service.group (not $service.mesh) -}}
{{- fail "services.generator.mesh: is not set; a group needs the devices of all its hosts, such as 4x4" -}}
{{- end -}}
{{- range $kind := $works -}}
{{- $each := $service -}}
{{- if eq $kind "batch" -}}{{- $each = include "smalti.batchService" $service | fromYaml -}}{{- end -}}
{{- $asked := $each.accelerator | default (dict "kind" "none") -}}
{{- if eq $name "generator" -}}{{- include "smalti.fits" (dict "root" $ "model" $model "service" $each) -}}{{- end -}}
{{- $devices := int (mul (int ($asked.count | default 1)) (int (($each.group | default dict).size | default 1))) -}}
{{- if and (eq $asked.kind "tpu") $asked.topology (ne (int (include "smalti.product" $asked.topology)) $devices) -}}
{{- fail (printf "services.%s.accelerator: topology %s has %s chips, and count times group.size asks for %d; make them equal" $name $asked.topology (include "smalti.product" $asked.topology) $devices) -}}
{{- end -}}
{{- if and $each.mesh (ne $asked.kind "none") (ne (int (include "smalti.product" $each.mesh)) $devices) -}}
{{- fail (printf "services.%s.mesh: %s is of %s devices, and accelerator.count times group.size asks for %d; make them equal" $name $each.mesh (include "smalti.product" $each.mesh) $devices) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $accelerator.kind "tpu") (eq $name "ranker") -}}
{{- fail "services.ranker.accelerator: the ranker computes with PyTorch, which has no build for tpu here; use none or nvidia" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "smalti.needSecrets" . -}}
{{- end -}}
