{{/* One worker a GPU, or one a pod on CPUs; the cores of a pod are shared out among its workers. */}}
{{- define "gan-training.scaleFlags" -}}
{{- $perPod := max 1 (int .Values.workers.gpus) -}}
{{- $least := mul (max 1 (int .Values.workers.minReplicas)) $perPod -}}
{{- $most := mul (int .Values.workers.maxReplicas) $perPod -}}
{{- $cpus := max 1 (div (int .Values.workers.cpus) $perPod) -}}
--scale.workers {{ $least }}:{{ $most }} --scale.gpu {{ gt (int .Values.workers.gpus) 0 }} --scale.cpus {{ $cpus }}
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
{{- range .Values.job.arguments }} {{ if regexMatch "^[A-Za-z0-9_.,:/=@%+-]+$" . }}{{ . }}{{ else }}{{ squote . }}{{ end }}{{ end }}
{{- end }}

{{/* A retry of the RayJob is a new cluster and the same command: the run goes on from its checkpoint. */}}
{{- define "gan-training.jobSpec" -}}
entrypoint: {{ printf "python -m service.train %s" (include "gan-training.flags" .) | quote }}
submissionMode: K8sJobMode
backoffLimit: {{ .Values.job.backoffLimit }}
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ .Values.job.ttlSecondsAfterFinished }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "gan-training.selector" . | nindent 6 }}
      app.kubernetes.io/component: submitter
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
    volumes:
      {{- include "gan-training.clientVolumes" . | nindent 6 }}
rayClusterSpec:
  {{- include "gan-training.clusterSpec" . | nindent 2 }}
{{- end }}

{{/* A RayJob never changes once it runs, so a changed one is another, and takes over the run directory. */}}
{{- define "gan-training.jobName" -}}
{{- printf "%s-%s" (include "gan-training.name" .) (include "gan-training.jobSpec" . | fromYaml | toJson | sha256sum | trunc 8) -}}
{{- end }}
