{{/* What no schema can say in words: each refusal names the key and says what to do. */}}
{{- define "gan-training.validate" -}}
{{- $values := .Values }}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" .Release.Name) }}
{{- fail (printf "the release's name %s: KubeRay wants a letter first, then letters, digits and -; choose another" .Release.Name) }}
{{- end }}
{{- if not .Values.image.repository }}
{{- fail "image.repository: not given; build the service's image, push it, and name it here, such as registry.example.com/gan-training" }}
{{- end }}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
{{- fail "serviceAccount.name: not given, and serviceAccount.create is false; name an account that exists" }}
{{- end }}
{{- if not (or .Values.s3.existingSecret (not .Values.serviceAccount.create) .Values.serviceAccount.podIdentity (hasKey .Values.serviceAccount.annotations "eks.amazonaws.com/role-arn")) }}
{{- fail "s3.existingSecret: not given, and serviceAccount.annotations names no eks.amazonaws.com/role-arn; give a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a role, or serviceAccount.podIdentity" }}
{{- end }}
{{- if and .Values.tracking.existingSecret .Values.tracking.tokenSecret }}
{{- fail "tracking.tokenSecret: given beside tracking.existingSecret; MLflow takes a token, or a user and password; give one of them" }}
{{- end }}
{{- $sizes := dict "head" .Values.head }}
{{- $names := list }}
{{- range $group := include "gan-training.groups" . | fromYamlArray }}
{{- if has $group.name $names }}
{{- fail (printf "workerGroups: there are two groups %s; rename one" $group.name) }}
{{- end }}
{{- $names = append $names $group.name }}
{{- $sizes = set $sizes $group.name $group }}
{{- if ne (gt (int $group.gpus) 0) (gt (int $values.workers.gpus) 0) }}
{{- fail (printf "workerGroups: %s has %v GPUs, workers %v; all groups have GPUs, or none has" $group.name $group.gpus $values.workers.gpus) }}
{{- end }}
{{- if and $group.hostNetwork $values.networkPolicy.enabled (not $values.networkPolicy.nodes) }}
{{- fail (printf "networkPolicy.nodes: not given, and %s.hostNetwork is true: no policy knows these pods by their labels; name the network of the nodes" $group.name) }}
{{- end }}
{{- if gt (int $group.minReplicas) (int $group.maxReplicas) }}
{{- fail (printf "%s.minReplicas: %v is above %s.maxReplicas %v; lower it, or raise that" $group.name $group.minReplicas $group.name $group.maxReplicas) }}
{{- end }}
{{- end }}
{{- range $group, $size := $sizes }}
{{- if ge (include "gan-training.mebibytes" $size.sharedMemory | int64) (include "gan-training.mebibytes" $size.memory | int64) }}
{{- fail (printf "%s.sharedMemory: %s is part of %s.memory, %s, and leaves nothing of it; make it smaller" $group $size.sharedMemory $group $size.memory) }}
{{- end }}
{{- end }}
{{- if and .Values.kueue.queueName (include "gan-training.autoscaling" .) }}
{{- fail "kueue.queueName: a queue admits a fixed number of workers; make workers.minReplicas and workers.maxReplicas equal" }}
{{- end }}
{{- if and .Values.resubmit.schedule (eq .Values.mode "job") }}
{{- fail "resubmit.schedule: given, but mode is job, whose run is started again by itself (job.backoffLimit); leave it out" }}
{{- end }}
{{- if or .Values.resubmit.schedule (eq .Values.mode "job") }}
{{- include "gan-training.validateJob" . }}
{{- else }}
{{- range $key := list "preset" "dataUrl" "runDir" "arguments" }}
{{- if get $values.job $key }}
{{- fail (printf "job.%s: given, but mode is cluster; set mode: job for one run, or resubmit.schedule, or leave job out and submit runs to the cluster" $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gan-training.validateJob" -}}
{{- $values := .Values }}
{{- range $key := list "preset" "dataUrl" "runDir" }}
{{- if not (get $values.job $key) }}
{{- fail (printf "job.%s: not given, and %s; see values.yaml" $key (eq $values.mode "job" | ternary "mode is job" "resubmit.schedule is")) }}
{{- end }}
{{- end }}
{{- if not (include "gan-training.trackingUri" .) }}
{{- fail "tracking.uri: not given, and install.mlflow is false; a run in S3 needs an MLflow server" }}
{{- end }}
{{- $owned := dict "--preset" "job.preset" "--data.url" "job.dataUrl" "--run.dir" "job.runDir" "--tracking.uri" "tracking.uri" "--tracking.prometheus_port" "tracking.prometheusPort" "--tracking.prometheus_host" "tracking.prometheusPort" "--scale.workers" "workers.minReplicas and workers.maxReplicas" "--scale.gpu" "workers.gpus" "--scale.cpus" "workers.cpus" }}
{{- range .Values.job.arguments }}
{{- $flag := splitList "=" . | first }}
{{- if hasKey $owned $flag }}
{{- fail (printf "job.arguments: %s is set by %s; take it out here" $flag (get $owned $flag)) }}
{{- end }}
{{- end }}
{{- end }}
