{{/* Names may look like other YAML types (a release called y or 123): whoever uses these quotes them. */}}
{{- define "replicator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 52 characters at most: room for the suffixes of the objects named after it. */}}
{{- define "replicator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "replicator.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "replicator.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "replicator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "replicator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "replicator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{ include "replicator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- define "replicator.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "replicator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "replicator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "replicator.secretName" -}}
{{- if .Values.secret.existing -}}
{{- .Values.secret.existing -}}
{{- else if .Values.secret.data -}}
{{- include "replicator.fullname" . -}}
{{- end -}}
{{- end -}}

{{- define "replicator.migration" -}}
{{- default (.Release.Name | replace "." "-") .Values.config.migration -}}
{{- end -}}

{{/* The daemon's configuration: the values' with the migration's name and the chart's listen addresses in it. */}}
{{- define "replicator.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "migration" (include "replicator.migration" .) -}}
{{- $admin := default (dict) $config.admin -}}
{{- $_ := set $admin "listen" (printf "%s:%d" .Values.listenHost (int .Values.ports.admin)) -}}
{{- $_ := set $config "admin" $admin -}}
{{- $_ := set $config "metrics" (dict "listen" (printf "%s:%d" .Values.listenHost (int .Values.ports.metrics))) -}}
{{- range $key := list "postgres" "redis" "cutover" -}}
{{- if not (get $config $key) -}}{{- $_ := unset $config $key -}}{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What no schema can see: said in plain words before anything is made. */}}
{{- define "replicator.checkValues" -}}
{{- $migration := include "replicator.migration" . -}}
{{- range concat (default (list) .Values.config.postgres) (default (list) .Values.config.redis) -}}
{{- if gt (add (len $migration) (len .name)) 32 -}}
{{- fail (printf "migration %q and pair %q are too long: their names may have 32 characters together (config.migration sets the first)" $migration .name) -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.config.postgres .Values.config.redis) -}}
{{- fail "config has neither postgres nor redis pairs: name at least one" -}}
{{- end -}}
{{- if and .Values.secret.existing .Values.secret.data -}}
{{- fail "secret.existing and secret.data are both set: choose one" -}}
{{- end -}}
{{- if not (or .Values.secret.existing .Values.secret.data .Values.extraEnv .Values.extraEnvFrom .Values.extraVolumes) -}}
{{- fail "no secret: set secret.existing to a Secret with SOURCE_DATABASE_URL, TARGET_DATABASE_URL and REPLICATOR_TOKEN (or secret.data for a trial)" -}}
{{- end -}}
{{- if eq (int .Values.ports.admin) (int .Values.ports.metrics) -}}
{{- fail "ports.admin and ports.metrics are the same: the two listeners need a port each" -}}
{{- end -}}
{{- end -}}
