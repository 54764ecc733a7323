{{- define "fathom.selector" -}}
app.kubernetes.io/name: fathom
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fathom.labels" -}}
{{ include "fathom.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Not `fathom` alone: Kubernetes would name a variable FATHOM_PORT after such a service. */}}
{{- define "fathom.name" -}}
{{ printf "%s-server" .Release.Name | trunc 54 | trimSuffix "-" }}
{{- end }}

{{- define "fathom.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "fathom.settings" -}}
{{- $own := dict "host" "0.0.0.0" "port" (int .Values.service.port) "metrics_port" (int .Values.service.metricsPort) }}
{{- if .Values.tls.secretName }}
{{- $own = merge $own (dict "tls_cert" "/etc/fathom/tls/tls.crt" "tls_key" "/etc/fathom/tls/tls.key") }}
{{- if .Values.tls.clientCa }}{{ $own = set $own "tls_client_ca" "/etc/fathom/tls/ca.crt" }}{{ end }}
{{- end }}
{{- if .Values.access.secretName }}{{ $own = set $own "access" "/etc/fathom/access/access.yaml" }}{{ end }}
{{- if .Values.insecure }}{{ $own = set $own "insecure" true }}{{ end }}
{{- toYaml (merge $own .Values.settings) }}
{{- end }}
