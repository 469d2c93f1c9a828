{{- define "expedited.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "expedited.selector" -}}
app.kubernetes.io/name: expedited
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "expedited.labels" -}}
{{ include "expedited.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "expedited.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "expedited.name" .) -}}
{{- end -}}

{{- define "expedited.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The host's directories of runtimes, that of containerd's socket with them. */}}
{{- define "expedited.stateDirs" -}}
{{- $dirs := .Values.runtime.stateDirs -}}
{{- with .Values.runtime.containerdSocket -}}
{{- $socketDir := dir . -}}
{{- $covered := false -}}
{{- range $dirs -}}
{{- if or (eq . $socketDir) (hasPrefix (printf "%s/" .) $socketDir) -}}{{- $covered = true -}}{{- end -}}
{{- end -}}
{{- if not $covered -}}{{- $dirs = append $dirs $socketDir -}}{{- end -}}
{{- end -}}
{{- $dirs | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* A volume's name for a directory. */}}
{{- define "expedited.volume" -}}
{{- printf "runtime%s" (. | replace "/" "-" | lower | replace "_" "-" | replace "." "-") | trunc 63 | trimSuffix "-" -}}
{{- end -}}
