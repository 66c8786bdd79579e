{{/*
The pods of a worker, from the metadata on: `root`, `model`, `name` of the service, its values as `service`, `full` name,
`component` for its labels, and the `work` that it takes. A process that follows in a group has the probes of its leader.
*/}}
{{- define "smalti.worker" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $name := .name -}}
{{- $service := .service -}}
{{- $full := .full -}}
{{- $component := .component -}}
{{- $work := .work -}}
{{- $context := dict "root" $root "component" $component "model" $model.name -}}
{{- $accelerator := $service.accelerator | default (dict "kind" "none") -}}
{{- $suffix := "" -}}
{{- if eq $accelerator.kind "nvidia" }}{{ $suffix = ternary "-cuda" (printf "-%s" ($accelerator.cuda | default "cuda12")) (eq $name "ranker") }}{{ end -}}
{{- if eq $accelerator.kind "tpu" }}{{ $suffix = "-tpu" }}{{ end -}}
{{- $image := $service.image | default (include "smalti.image" (dict "root" $root "service" $name "suffix" $suffix)) -}}
{{- $resources := deepCopy $service.resources -}}
{{- if ne $accelerator.kind "none" -}}
{{- $resource := $accelerator.resource | default (ternary "google.com/tpu" "nvidia.com/gpu" (eq $accelerator.kind "tpu")) -}}
{{- $_ := mergeOverwrite $resources (dict "requests" (dict $resource ($accelerator.count | default 1)) "limits" (dict $resource ($accelerator.count | default 1))) -}}
{{- end -}}
{{- $secrets := list (include "smalti.brokerSecret" $root) (include "smalti.storeSecret" $root) -}}
{{- with $service.group }}{{ $secrets = append $secrets (.existingSecret | default (printf "%s-group" (include "smalti.name" $root))) }}{{ end -}}
{{- $volumes := dict "root" $root "component" $component "queue" true "secrets" $secrets -}}
metadata:
  labels: {{- mergeOverwrite (deepCopy $root.Values.podLabels) (include "smalti.labels" $root | fromYaml) (include "smalti.selector" $context | fromYaml) | toYaml | nindent 4 }}
  {{- with $root.Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "smalti.name" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with include "smalti.priorityClass" (dict "root" $root "kind" (ternary "batch" "interactive" (eq $work "batch"))) }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ include "smalti.grace" $root }}
  securityContext: {{- include "smalti.podSecurity" 10001 | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- $selector := dict }}
  {{- if eq $accelerator.kind "tpu" }}
  {{- $selector = dict "cloud.google.com/gke-tpu-accelerator" $accelerator.type "cloud.google.com/gke-tpu-topology" $accelerator.topology }}
  {{- else if and (eq $accelerator.kind "nvidia") $accelerator.type }}
  {{- $selector = dict "nvidia.com/gpu.product" $accelerator.type }}
  {{- end }}
  {{- with merge (deepCopy ($service.nodeSelector | default dict)) $selector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $service.tolerations | default list }}
  {{- if ne $accelerator.kind "none" }}
  {{- $tolerations = append $tolerations (dict "key" (ternary "google.com/tpu" "nvidia.com/gpu" (eq $accelerator.kind "tpu")) "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints: {{- include "smalti.spread" (merge (dict "service" $service) $context) | nindent 4 }}
  {{- $models := include "smalti.modelContainers" (dict "root" $root "model" $model "image" $image "resources" $service.resources) }}
  {{- with trim $models }}
  initContainers: {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ $name }}
      image: {{ $image }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      env:
        {{- include "smalti.env" $root | nindent 8 }}
        {{- include "smalti.queueEnv" (dict "root" $root "model" $model) | nindent 8 }}
        {{- with trim (include "smalti.rpcEnv" (dict "root" $root "component" $component)) }}
        {{- . | nindent 8 }}
        {{- end }}
        - { name: SMALTI_COMPILATION_CACHE_VOLUME, value: "1" }
        {{- if $root.Values.cache.existingClaim }}
        - { name: SMALTI_COMPILATION_CACHE, value: /cache/{{ $full }} }
        {{- end }}
        {{- with $service.slots }}
        - { name: SMALTI_SERVICE_SLOTS, value: {{ . | quote }} }
        {{- end }}
        {{- with $service.concurrency }}
        - { name: SMALTI_SERVICE_CONCURRENCY, value: {{ . | quote }} }
        {{- end }}
        {{- if ne $work "all" }}
        - { name: SMALTI_BROKER_WORK, value: {{ $work }} }
        {{- end }}
        {{- with $service.mesh }}
        - { name: SMALTI_GENERATOR_MESH, value: {{ . }} }
        {{- end }}
        {{- if $service.group }}
        # Size, index and leader come from the LeaderWorkerSet. What goes between its pods is not encrypted, and no other pod reaches it.
        - { name: SMALTI_GROUP_PLAINTEXT, value: "1" }
        - { name: SMALTI_GROUP_WAIT, value: {{ ($service.probes | default dict).startupSeconds | default 900 | quote }} }
        {{- end }}
        {{- if eq $accelerator.kind "tpu" }}
        - { name: JAX_PLATFORMS, value: "tpu,cpu" }
        {{- end }}
        {{- range $key, $value := $service.env }}
        - { name: {{ $key }}, value: {{ $value | quote }} }
        {{- end }}
      ports:
        - { name: grpc, containerPort: 50050 }
        - { name: health, containerPort: 50049 }
        - { name: metrics, containerPort: 9150 }
        {{- if $service.group }}
        - { name: group, containerPort: 8475 }
        - { name: coordinator, containerPort: 8476 }
        {{- end }}
      # Weights are loaded, programs compiled, and the store has taken a write.
      startupProbe:
        grpc: { port: 50049, service: store }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (($service.probes | default dict).startupSeconds | default 900) 5 }}
      readinessProbe:
        grpc: { port: 50049 }
        {{- include "smalti.timing" (dict "service" $service "probe" "readiness" "default" (dict "periodSeconds" 5 "timeoutSeconds" 3 "failureThreshold" 2)) | nindent 8 }}
      # A process whose engine has died ends by itself; this finds one that answers nothing at all.
      livenessProbe:
        httpGet: { path: /metrics, port: metrics }
        {{- include "smalti.timing" (dict "service" $service "probe" "liveness" "default" (dict "periodSeconds" 20 "timeoutSeconds" 10 "failureThreshold" 6)) | nindent 8 }}
      lifecycle: {{- include "smalti.preStop" $root | nindent 8 }}
      securityContext: {{- include "smalti.containerSecurity" $root | nindent 8 }}
      resources: {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        {{- include "smalti.volumeMounts" $volumes | nindent 8 }}
        - { name: data, mountPath: /data }
        - { name: cache, mountPath: /cache }
        - { name: models, mountPath: /models, readOnly: true }
        {{- if ne $accelerator.kind "none" }}
        - { name: shm, mountPath: /dev/shm }
        {{- end }}
  volumes:
    {{- include "smalti.volumes" $volumes | nindent 4 }}
    # What this worker was doing when it crashed; it must outlive the container, not the pod.
    - { name: data, emptyDir: {} }
    {{- if $root.Values.cache.existingClaim }}
    - { name: cache, persistentVolumeClaim: { claimName: {{ $root.Values.cache.existingClaim }} } }
    {{- else }}
    - { name: cache, emptyDir: { sizeLimit: {{ $root.Values.cache.size }} } }
    {{- end }}
    {{- include "smalti.modelVolume" (dict "root" $root "model" $model) | nindent 4 }}
    {{- if ne $accelerator.kind "none" }}
    - { name: shm, emptyDir: { medium: Memory, sizeLimit: 1Gi } }
    {{- end }}
{{- end -}}
