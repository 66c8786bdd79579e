{{/*
Refuses a generator that does not fit on its devices: weights, keys and values of the slots, and room for the programs.
What SMALTI_GENERATOR_INT8 names, among the variables of the generator or else of all, is counted as int8.
Empty where the size of the model, or the memory of the device, is not known. `root`, `model`, and the values as `service`.
*/}}
{{- define "smalti.fits" -}}
{{- $known := .root.Files.Get "files/memory.yaml" | fromYaml -}}
{{- $accelerator := .service.accelerator | default (dict "kind" "none") -}}
{{- $size := .model.size | default (get (dict "dalle-mini/dalle-mini" "mini" "dalle-mini/dalle-mega" "mega") ((.model.source.hub | default dict).repository | default "")) -}}
{{- $device := index $known.devices ($accelerator.type | default "") | default dict -}}
{{- $slice := regexFind "mig-[0-9]+g[.][0-9]+gb$" ($accelerator.resource | default "") -}}
{{- if $slice -}}
{{- $gib := regexFind "[0-9]+gb$" $slice | trimSuffix "gb" | float64 -}}
{{- $device = dict "name" $slice "gib" (mulf $gib $known.share) -}}
{{- end -}}
{{- if and $size $device (ne $accelerator.kind "none") -}}
{{- $bytes := dict "weights" 0 "slot" 0 -}}
{{- $remedies := "fewer slots, or more devices" -}}
{{- if kindIs "string" $size -}}
{{- $bytes = index $known.models $size $accelerator.kind -}}
{{- $own := .service.env | default dict -}}
{{- $variables := ternary $own (.root.Values.env | default dict) (hasKey $own "SMALTI_GENERATOR_INT8") -}}
{{- $short := get $variables "SMALTI_GENERATOR_INT8" | default "" | nospace | splitList "," -}}
{{- range $part, $fields := $bytes.int8 -}}
{{- if has $part $short -}}
{{- $bytes = merge (dict) $fields $bytes -}}
{{- else -}}
{{- $remedies = "fewer slots, int8 (services.generator.env.SMALTI_GENERATOR_INT8=cache,weights), or more devices" -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $bytes = dict "weights" 0 "slot" 0 "splitWeights" $size.weights "splitSlot" $size.slot -}}
{{- end -}}
{{- $mesh := .service.mesh | default "1x1" -}}
{{- $data := index (splitList "x" $mesh) 0 | float64 -}}
{{- $model := index (splitList "x" $mesh) 1 | float64 -}}
{{- $slots := ceil (divf (.service.slots | default 16) $data) -}}
{{- $split := divf (addf $bytes.splitWeights (mulf $slots $bytes.splitSlot)) $model -}}
{{- $needed := divf (addf $known.working $bytes.weights (mulf $slots $bytes.slot) $split) 1073741824 -}}
{{- if gt $needed $device.gib -}}
{{- fail (printf "models.%s on %s %s needs %.1f GiB of %.1f: %s, such as %.0fx%.0f" .model.name $device.name $mesh $needed $device.gib $remedies $data (mulf 4 $model)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
