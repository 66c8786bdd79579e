{{- define "smalti.pdb" }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .full }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "smalti.labels" .root | nindent 4 }}
spec:
  {{- $budget := .service.pdb | default dict }}
  {{- if hasKey $budget "minAvailable" }}
  minAvailable: {{ $budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ ternary $budget.maxUnavailable 1 (hasKey $budget "maxUnavailable") }}
  {{- end }}
  selector:
    matchLabels: {{- include "smalti.selector" .context | nindent 6 }}
{{- end }}

{{/* Scales the workers of a service of a model that take a kind of work. */}}
{{- define "smalti.autoscaler" }}
{{- $values := .root.Values.autoscaling }}
{{- $own := .service.autoscaling | default dict }}
{{- $stage := get (dict "encoder" "encode" "generator" "generate" "decoder" "decode" "ranker" "rank" "refiner" "refine") .name }}
{{- $batch := eq .work "batch" }}
{{- if $batch }}{{ $own = .service.batch }}{{ end }}
{{- $least := $own.minReplicas | default (ternary 0 .service.replicas $batch) }}
{{- $most := $own.maxReplicas | default (mul (ternary 1 4 $batch) (int .service.replicas)) }}
{{- $target := dict "apiVersion" (ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" (hasKey .service "group")) "kind" (ternary "LeaderWorkerSet" "Deployment" (hasKey .service "group")) "name" .full }}
{{- $queues := get (dict "all" "(interactive|batch)" "interactive" "interactive" "batch" "batch") .work }}
{{- if and (eq .work "all") (has "batch" (include "smalti.works" (dict "root" .root "service" .service) | fromYamlArray)) }}{{ $queues = "interactive" }}{{ end }}
{{- $key := get (.model.keys | default dict) $stage | default "[0-9a-f]{12}" }}
{{- if eq $values.kind "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .full }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "smalti.labels" .root | nindent 4 }}
spec:
  scaleTargetRef: {{- toYaml $target | nindent 4 }}
  minReplicaCount: {{ $least }}
  maxReplicaCount: {{ $most }}
  pollingInterval: {{ $values.pollingSeconds }}
  cooldownPeriod: {{ $values.scaleDownSeconds }}
  # If nobody answers, neither more nor less than at rest.
  fallback: { failureThreshold: 4, replicas: {{ .service.replicas }} }
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ $values.scaleDownSeconds }}
          policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
  triggers:
    {{- if eq .root.Values.broker.kind "rabbitmq" }}
    # By HTTP, so that messages that a worker has and has not acknowledged count too. Of every key, or of the model's.
    - type: rabbitmq
      metadata:
        protocol: http
        mode: QueueLength
        value: {{ $own.messages | default (ternary 2 4 $batch) | quote }}
        useRegex: "true"
        operation: sum
        queueName: {{ printf "^smalti\\.%s\\.%s\\.%s$" $stage $key $queues | quote }}
      authenticationRef: { name: {{ include "smalti.name" .root }}-rabbitmq }
    {{- else if $batch }}
    # Shards that were sent and are not done, of all models. Work of jobs with the priority of batches is not counted.
    - type: prometheus
      metadata:
        serverAddress: {{ $values.prometheus | quote }}
        query: max(sum by (instance) (smalti_batch_shards{state="sent"}))
        threshold: {{ $own.messages | default 2 | quote }}
    {{- else if ne .name "generator" }}
    # Messages in work. A list of Valkey does not count what a worker has taken, and no other program reads those that do.
    - type: prometheus
      metadata:
        serverAddress: {{ $values.prometheus | quote }}
        query: {{ printf "sum(smalti_requests_running{service=%q, model=%q, entry=\"queue\"})" .name .model.name | quote }}
        threshold: {{ $own.messages | default 1 | quote }}
    {{- end }}
    {{- if and (eq .name "generator") $values.prometheus (not $batch) }}
    # Candidates that wait or are in work, of every revision of the model, against the slots of a generator.
    - type: prometheus
      metadata:
        serverAddress: {{ $values.prometheus | quote }}
        query: {{ printf "max(sum by (instance) (smalti_revision_candidates_waiting{revision=~\"%s@.*\"} + smalti_revision_candidates_sent{revision=~\"%s@.*\"}))" .model.name .model.name | quote }}
        threshold: {{ .service.slots | default 16 | quote }}
    {{- end }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .full }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "smalti.labels" .root | nindent 4 }}
spec:
  scaleTargetRef: {{- toYaml $target | nindent 4 }}
  minReplicas: {{ max 1 (int $least) }}
  maxReplicas: {{ $most }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ $values.scaleDownSeconds }}
      policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
  metrics:
    {{- if eq .name "generator" }}
    # An adapter for Prometheus must serve it.
    - type: Pods
      pods:
        metric: { name: smalti_slots_active }
        target: { type: AverageValue, averageValue: {{ div (mul 8 (.service.slots | default 16)) 10 | quote }} }
    {{- else }}
    - type: Resource
      resource: { name: cpu, target: { type: Utilization, averageUtilization: 80 } }
    {{- end }}
{{- end }}
{{- end }}

{{/* Scales the gateway or the web service by its processors, without KEDA too. */}}
{{- define "smalti.cpuScaler" }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .full }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "smalti.labels" .root | nindent 4 }}
spec:
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: {{ .full }} }
  minReplicas: {{ .service.autoscaling.minReplicas | default .service.replicas }}
  maxReplicas: {{ .service.autoscaling.maxReplicas }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ .root.Values.autoscaling.scaleDownSeconds }}
  metrics:
    - type: Resource
      resource: { name: cpu, target: { type: Utilization, averageUtilization: 70 } }
{{- end }}
