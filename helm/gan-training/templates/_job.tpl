{{/* One worker a GPU, or one a pod on CPUs; the cores of a pod are shared out among its workers. */}}
{{- define "gan-training.scaleFlags" -}}
{{- $least := 0 }}{{ $most := 0 }}{{ $cpus := 0 }}{{ $smallest := 0 -}}
{{- range include "gan-training.groups" . | fromYamlArray }}
{{- $perPod := max 1 (int .gpus) }}
{{- $least = add $least (mul (int .minReplicas) $perPod) }}
{{- $most = add $most (mul (int .maxReplicas) $perPod) }}
{{- $each := max 1 (div (int .cpus) $perPod) }}
{{- $cpus = ternary $each (min $cpus $each) (eq $cpus 0) }}
{{- $smallest = ternary $perPod (min $smallest $perPod) (eq $smallest 0) }}
{{- end -}}
--scale.workers {{ max $least $smallest }}:{{ $most }} --scale.gpu {{ gt (int .Values.workers.gpus) 0 }} --scale.cpus {{ $cpus }}
{{- end }}

{{- define "gan-training.cacheFlags" -}}
{{- $cache := "" }}{{ $limited := false -}}
{{- range .Values.job.arguments }}
{{- if regexMatch "^--data\\.cache_dir(=|$)" . }}{{ $cache = . }}{{ end }}
{{- if regexMatch "^--data\\.cache_bytes(=|$)" . }}{{ $limited = true }}{{ end }}
{{- end }}
{{- if and $cache (not $limited) }} --data.cache_bytes {{ include "gan-training.cacheBytes" . }}{{ end -}}
{{- end }}

{{- define "gan-training.metricsFlags" -}}
--tracking.prometheus_host 0.0.0.0 --tracking.prometheus_port {{ .Values.tracking.prometheusPort }}
{{- end }}

{{/*
Flags of the run, for service.train and for service.plan, as words of a shell. The schema lets no quote of
the kind in that an argument with spaces or JSON is put in, nor anything that Kubernetes would expand.
*/}}
{{- define "gan-training.flags" -}}
--preset {{ .Values.job.preset }} --data.url {{ .Values.job.dataUrl }} --run.dir {{ .Values.job.runDir }}
{{- printf " --tracking.uri %s" (include "gan-training.trackingUri" .) }}
{{- printf " %s %s" (include "gan-training.metricsFlags" .) (include "gan-training.scaleFlags" .) }}
{{- include "gan-training.cacheFlags" . }}
{{- range .Values.job.arguments }} {{ if regexMatch "^[A-Za-z0-9_.,:/=@%+-]+$" . }}{{ . }}{{ else }}{{ squote . }}{{ end }}{{ end }}
{{- end }}

{{/* A retry of the RayJob is a new cluster and the same command: the run goes on from its checkpoint. */}}
{{- define "gan-training.jobSpec" -}}
entrypoint: {{ printf "python -m service.train %s" (include "gan-training.flags" .) | quote }}
submissionMode: K8sJobMode
backoffLimit: {{ .Values.job.backoffLimit }}
{{- with .Values.job.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
{{- with .Values.job.preRunningDeadlineSeconds }}
preRunningDeadlineSeconds: {{ . }}
{{- end }}
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ .Values.job.ttlSecondsAfterFinished }}
submitterPodTemplate:
  metadata:
    {{- include "gan-training.podMetadata" (dict "root" . "component" "submitter") | nindent 4 }}
  spec:
    {{- include "gan-training.podSecurity" . | nindent 4 }}
    restartPolicy: Never
    {{- with include "gan-training.placement" .Values.head | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: ray-job-submitter
        {{- include "gan-training.clientContainer" . | nindent 8 }}
        env:
          - name: HOME
            value: /scratch
          {{- with .Values.pods.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "gan-training.clientVolumes" . | nindent 6 }}
rayClusterSpec:
  {{- include "gan-training.clusterSpec" . | nindent 2 }}
{{- end }}

{{/* A RayJob never changes once it runs, so a changed one is another, and takes over the run directory. */}}
{{- define "gan-training.jobName" -}}
{{- printf "%s-%s" (include "gan-training.name" .) (include "gan-training.jobSpec" . | fromYaml | toJson | sha256sum | trunc 8) -}}
{{- end }}
