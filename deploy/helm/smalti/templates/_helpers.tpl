{{/* Names and labels. */}}
{{- define "smalti.name" -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- define "smalti.selector" -}}
app.kubernetes.io/name: smalti
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .model }}
smalti-model: {{ . }}
{{- end }}
{{- end -}}

{{- define "smalti.labels" -}}
app.kubernetes.io/name: smalti
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The image of a service; `suffix` is that of an accelerator. */}}
{{- define "smalti.image" -}}
{{- printf "%s/%s:%s%s" .root.Values.image.repository .service (.root.Values.image.tag | default .root.Chart.AppVersion) (.suffix | default "") -}}
{{- end -}}

{{/* What restricted Pod Security asks for. */}}
{{- define "smalti.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
# Without this, every mount of a claim would let the group write, and the cache of programs would be refused.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "smalti.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Longer than preStop and the drain, after which the process ends by itself. */}}
{{- define "smalti.grace" -}}
{{- add .Values.drain.delaySeconds .Values.drain.seconds 10 -}}
{{- end -}}

{{/* Before SIGTERM, so that clients have learned that the pod goes. */}}
{{- define "smalti.preStop" -}}
preStop: { sleep: { seconds: {{ .Values.drain.delaySeconds }} } }
{{- end -}}

{{/* "1" if any model has a refiner. */}}
{{- define "smalti.refines" -}}
{{- $replicas := 0 -}}
{{- range $model := .Values.models -}}
{{- $service := include "smalti.service" (dict "root" $ "model" $model "name" "refiner") | fromYaml -}}
{{- $replicas = add $replicas (len (include "smalti.works" (dict "root" $ "service" $service) | fromYamlArray)) -}}
{{- end -}}
{{- ternary "1" "0" (gt $replicas 0) -}}
{{- end -}}

{{/* The values of a service for a model: `batch` of all, above it those of the service, and above them those of the model. */}}
{{- define "smalti.service" -}}
{{- $common := deepCopy (index .root.Values.services .name) -}}
{{- with .root.Values.batch -}}{{- $_ := set $common "batch" (mergeOverwrite (deepCopy .) ($common.batch | default dict)) -}}{{- end -}}
{{- $own := index (.model.services | default dict) .name | default dict -}}
{{- toYaml (mergeOverwrite $common (deepCopy $own)) -}}
{{- end -}}

{{/* What workers a service has, as a list: of `all` work or only `interactive`, and of `batch` beside them. */}}
{{- define "smalti.works" -}}
{{- $batch := .service.batch | default dict -}}
{{- $most := ternary ($batch.replicas | default 0) ($batch.maxReplicas | default ($batch.replicas | default 0)) (eq .root.Values.autoscaling.kind "none") -}}
{{- $works := list -}}
{{- if gt (int .service.replicas) 0 -}}{{- $works = append $works (ternary "interactive" "all" (and (hasKey $batch "shared") (not $batch.shared))) -}}{{- end -}}
{{- if gt (int $most) 0 -}}{{- $works = append $works "batch" -}}{{- end -}}
{{- toYaml $works -}}
{{- end -}}

{{/* The values of the workers for batches: those of the service, and above them its `batch`. */}}
{{- define "smalti.batchService" -}}
{{- $own := .batch -}}
{{- $service := mergeOverwrite (deepCopy (omit . "batch" "autoscaling")) (deepCopy (omit $own "shared" "minReplicas" "maxReplicas" "messages")) -}}
{{- $_ := set $service "replicas" ($own.replicas | default 0) -}}
{{- $_ := set $service "batch" $own -}}
{{- toYaml $service -}}
{{- end -}}

{{/* The product of the numbers of a mesh or a topology, such as 2x4. */}}
{{- define "smalti.product" -}}
{{- $product := 1 -}}
{{- range splitList "x" . }}{{ $product = mul $product (atoi .) }}{{ end -}}
{{- $product -}}
{{- end -}}

{{/* The class of pods of a kind of work; empty for that of the cluster. */}}
{{- define "smalti.priorityClass" -}}
{{- $classes := .root.Values.priorityClasses -}}
{{- index $classes (printf "%sName" .kind) | default (ternary (printf "%s-%s" (include "smalti.name" .root) .kind) "" $classes.create) -}}
{{- end -}}

{{/* What the pods of stages are labelled as. */}}
{{- define "smalti.components" -}}
{{- range list "encoder" "generator" "decoder" "ranker" "refiner" }}
- {{ . }}
- {{ . }}-batch
{{- end }}
{{- end -}}

{{/* Secrets and addresses of broker, store and database. */}}
{{- define "smalti.brokerSecret" -}}
{{- .Values.broker.existingSecret | default (printf "%s-broker" (include "smalti.name" .)) -}}
{{- end -}}
{{- define "smalti.storeSecret" -}}
{{- .Values.objectStore.existingSecret | default (printf "%s-store" (include "smalti.name" .)) -}}
{{- end -}}
{{- define "smalti.databaseSecret" -}}
{{- .Values.database.existingSecret | default (printf "%s-database" (include "smalti.name" .)) -}}
{{- end -}}
{{- define "smalti.storeUrl" -}}
{{- if .Values.objectStore.small.enabled -}}
s3+http://{{ include "smalti.name" . }}-store:8333/smalti
{{- else -}}
{{ .Values.objectStore.url }}
{{- end -}}
{{- end -}}

{{/* Variables that every process has. */}}
{{- define "smalti.env" -}}
- { name: SMALTI_SECRETS, value: /run/smalti/secrets }
- { name: SMALTI_LOG_FORMAT, value: json }
- { name: SMALTI_LOG_LEVEL, value: {{ .Values.telemetry.logLevel }} }
{{- with .Values.telemetry.otlpEndpoint }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- if .Values.tls.plaintext }}
- { name: SMALTI_PLAINTEXT, value: "1" }
{{- end }}
{{- range $name, $value := .Values.env }}
- { name: {{ $name }}, value: {{ $value | quote }} }
{{- end }}
{{- end -}}

{{/* Variables of the gateway and the stages. */}}
{{- define "smalti.queueEnv" -}}
{{- $root := .root -}}
{{- $drain := $root.Values.drain.seconds -}}
- name: SMALTI_RPC_ADVERTISE
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
- { name: SMALTI_STORE_URL, value: {{ include "smalti.storeUrl" $root | quote }} }
- { name: SMALTI_STORE_EXPIRY_DAYS, value: {{ $root.Values.objectStore.expiryDays | quote }} }
{{- with $root.Values.objectStore.publicUrl }}
- { name: SMALTI_STORE_PUBLIC_URL, value: {{ . | quote }} }
{{- end }}
{{- if $root.Values.objectStore.caSecret }}
- { name: SMALTI_STORE_CA, value: /run/smalti/store-ca/ca.crt }
{{- end }}
{{- if $root.Values.broker.caSecret }}
- { name: SMALTI_BROKER_CA, value: /run/smalti/broker-ca/ca.crt }
{{- end }}
{{- /* An upgrade from a release that does not read this version has another one in `env` until all pods are new. */}}
{{- if not (hasKey ($root.Values.env | default dict) "SMALTI_MESSAGES_WRITE") }}
- { name: SMALTI_MESSAGES_WRITE, value: "3" }
{{- end }}
- { name: SMALTI_MODELS, value: /models }
- { name: SMALTI_MODEL, value: {{ .model.name }} }
- { name: SMALTI_RPC_GRACE, value: {{ $drain | quote }} }
- { name: SMALTI_BROKER_DRAIN, value: {{ $drain | quote }} }
- { name: SMALTI_SERVICE_GRACE, value: {{ add $drain 4 | quote }} }
{{- end -}}

{{/* gRPC among the services: certificates, or leave to do without. */}}
{{- define "smalti.rpcEnv" -}}
{{- if ne .root.Values.tls.internal.source "plaintext" }}
- { name: SMALTI_RPC_TLS_CERTIFICATE, value: /run/smalti/tls/tls.crt }
- { name: SMALTI_RPC_TLS_KEY, value: /run/smalti/tls/tls.key }
- { name: SMALTI_RPC_TLS_CLIENT_CA, value: /run/smalti/tls/ca.crt }
- { name: SMALTI_RPC_TLS_CA, value: /run/smalti/tls/ca.crt }
- { name: SMALTI_RPC_TLS_CLIENT_CERTIFICATE, value: /run/smalti/tls/tls.crt }
- { name: SMALTI_RPC_TLS_CLIENT_KEY, value: /run/smalti/tls/tls.key }
{{- if eq .component "web" }}
{{- else if eq .component "gateway" }}
# Stages are called at the addresses of their pods, and share a certificate.
- { name: SMALTI_RPC_TLS_SERVER_NAME, value: {{ include "smalti.name" .root }}-stages }
{{- else }}
- { name: SMALTI_RPC_SYSTEM_NAMES, value: {{ printf "%s-gateway,%s-stages" (include "smalti.name" .root) (include "smalti.name" .root) | quote }} }
{{- end }}
{{- else if not .root.Values.tls.plaintext }}
- { name: SMALTI_RPC_PLAINTEXT, value: "1" }
{{- end }}
{{- end -}}

{{/* Volumes; `secrets` are names of secrets whose keys are settings. */}}
{{- define "smalti.volumes" -}}
{{- $root := .root -}}
- { name: tmp, emptyDir: {} }
- name: secrets
  projected:
    sources: {{- if not .secrets }} []{{ end }}
      {{- range .secrets }}
      - secret: { name: {{ . }} }
      {{- end }}
{{- if .queue }}
{{- with $root.Values.objectStore.caSecret }}
- { name: store-ca, secret: { secretName: {{ . }} } }
{{- end }}
{{- with $root.Values.broker.caSecret }}
- { name: broker-ca, secret: { secretName: {{ . }} } }
{{- end }}
{{- end }}
{{- if eq .component "gateway" }}
{{- with $root.Values.database.caSecret }}
- { name: database-ca, secret: { secretName: {{ . }} } }
{{- end }}
{{- end }}
{{- if ne $root.Values.tls.internal.source "plaintext" }}
- { name: tls, secret: { secretName: {{ include "smalti.tlsSecret" . }} } }
{{- end }}
{{- end -}}

{{- define "smalti.volumeMounts" -}}
{{- $root := .root -}}
- { name: tmp, mountPath: /tmp }
- { name: secrets, mountPath: /run/smalti/secrets, readOnly: true }
{{- if .queue }}
{{- if $root.Values.objectStore.caSecret }}
- { name: store-ca, mountPath: /run/smalti/store-ca, readOnly: true }
{{- end }}
{{- if $root.Values.broker.caSecret }}
- { name: broker-ca, mountPath: /run/smalti/broker-ca, readOnly: true }
{{- end }}
{{- end }}
{{- if and (eq .component "gateway") $root.Values.database.caSecret }}
- { name: database-ca, mountPath: /run/smalti/database-ca, readOnly: true }
{{- end }}
{{- if ne $root.Values.tls.internal.source "plaintext" }}
- { name: tls, mountPath: /run/smalti/tls, readOnly: true }
{{- end }}
{{- end -}}

{{- define "smalti.tlsSecret" -}}
{{- $kind := ternary .component "stages" (has .component (list "gateway" "web")) -}}
{{- if eq .root.Values.tls.internal.source "secrets" -}}
{{- index .root.Values.tls.internal (printf "%sSecret" $kind) -}}
{{- else -}}
{{- printf "%s-%s-tls" (include "smalti.name" .root) $kind -}}
{{- end -}}
{{- end -}}

{{/* Pods of a service on many nodes, and many zones, where that is possible; or its own `spread`, for its own pods. */}}
{{- define "smalti.spread" -}}
{{- $pods := dict "matchLabels" (include "smalti.selector" . | fromYaml) -}}
{{- $constraints := list -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
{{- if hasKey .service "spread" -}}{{- $constraints = .service.spread -}}{{- end -}}
{{- $found := list -}}
{{- range $constraints -}}{{- $found = append $found (merge (deepCopy .) (dict "labelSelector" $pods)) -}}{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* How often a probe is made: what the chart says, and above it `probes` of the service. */}}
{{- define "smalti.timing" -}}
{{- toYaml (mergeOverwrite .default (deepCopy (index (.service.probes | default dict) .probe | default dict))) -}}
{{- end -}}

{{/* Whether a drain of nodes ends the pods of a service one at a time. */}}
{{- define "smalti.budgeted" -}}
{{- $budget := .service.pdb | default dict -}}
{{- if ternary $budget.enabled .root.Values.podDisruptionBudgets.enabled (hasKey $budget "enabled") -}}yes{{- end -}}
{{- end -}}

{{/* The folder of a model: the shipped one, a download that is verified, a claim, or an image. */}}
{{- define "smalti.modelVolume" -}}
{{- $source := .model.source -}}
{{- with $source.s3 }}
- { name: model-secrets, secret: { secretName: {{ .existingSecret | default (include "smalti.storeSecret" $.root) }} } }
{{- end }}
{{- if $source.claim }}
- { name: models, persistentVolumeClaim: { claimName: {{ $source.claim.name }}, readOnly: true } }
{{- else if $source.image }}
- { name: models, image: { reference: {{ $source.image.reference | quote }}, pullPolicy: {{ $source.image.pullPolicy | default "IfNotPresent" }} } }
{{- else if ($source.s3 | default dict).claim }}
- { name: models, persistentVolumeClaim: { claimName: {{ $source.s3.claim }} } }
{{- else }}
- { name: models, emptyDir: {} }
{{- end }}
{{- end -}}

{{- define "smalti.modelContainers" -}}
{{- $source := .model.source -}}
{{- $common := dict "root" .root }}
{{- with $source.hub }}
# Checks the networks of the model too, and imports those of others, for which not every service has the libraries.
- name: pull
  image: {{ include "smalti.image" (dict "root" $.root "service" "encoder") }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  command:
    - smalti
    - pull
    - {{ .repository | quote }}
    - --name
    - {{ $.model.name }}
    {{- with .revision }}
    - --revision
    - {{ . | quote }}
    {{- end }}
    {{- with .licence }}
    - --licence
    - {{ . | quote }}
    {{- end }}
  env:
    - { name: SMALTI_MODELS, value: /models }
    - { name: SMALTI_HUB_CACHE, value: /tmp/hub }
    {{- with .tokenSecret }}
    - { name: HF_TOKEN, valueFrom: { secretKeyRef: { name: {{ . }}, key: HF_TOKEN } } }
    {{- end }}
  securityContext: {{- include "smalti.containerSecurity" $common | nindent 4 }}
  resources: {{- toYaml $.resources | nindent 4 }}
  volumeMounts:
    - { name: models, mountPath: /models }
    - { name: tmp, mountPath: /tmp }
    - { name: data, mountPath: /data }
    - { name: cache, mountPath: /cache }
{{- end }}
{{- with $source.s3 }}
# Goes on where it stopped; with a claim, receives nothing that is there already.
- name: pull
  image: {{ $.image }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  command: [smalti, pull, {{ .address | quote }}, --name, {{ $.model.name }}, --sha256, {{ .sha256 | quote }}]
  env:
    {{- include "smalti.env" $.root | nindent 4 }}
    - { name: SMALTI_MODELS, value: /models }
    - { name: SMALTI_STORE_URL, value: {{ .url | default (include "smalti.storeUrl" $.root) | quote }} }
    {{- if and $.root.Values.objectStore.caSecret (not .url) }}
    - { name: SMALTI_STORE_CA, value: /run/smalti/store-ca/ca.crt }
    {{- end }}
  securityContext: {{- include "smalti.containerSecurity" $common | nindent 4 }}
  resources: {{- toYaml $.resources | nindent 4 }}
  volumeMounts:
    - { name: models, mountPath: /models }
    - { name: model-secrets, mountPath: /run/smalti/secrets, readOnly: true }
    {{- if and $.root.Values.objectStore.caSecret (not .url) }}
    - { name: store-ca, mountPath: /run/smalti/store-ca, readOnly: true }
    {{- end }}
    - { name: tmp, mountPath: /tmp }
    - { name: data, mountPath: /data }
    - { name: cache, mountPath: /cache }
{{- end }}
{{- if not $source.shipped }}
# Reads every file and compares it with its checksum in model.json, before the service says that it is ready.
- name: verify
  image: {{ $.image }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  command: [smalti, verify, {{ .model.name }}, --files{{ with .model.revision }}, --revision, {{ . | quote }}{{ end }}]
  env:
    - { name: SMALTI_MODELS, value: /models }
  securityContext: {{- include "smalti.containerSecurity" $common | nindent 4 }}
  resources: {{- toYaml $.resources | nindent 4 }}
  volumeMounts:
    - { name: models, mountPath: /models, readOnly: true }
    - { name: tmp, mountPath: /tmp }
    - { name: data, mountPath: /data }
    - { name: cache, mountPath: /cache }
{{- end }}
{{- end -}}
