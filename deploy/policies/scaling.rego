# KEDA counts the queues that there are: those of docs/queue.md with the key of a model, all of them, and no others.
package smalti

import rego.v1

triggers contains {"of": each.metadata.name, "metadata": trigger.metadata} if {
	some each in input.objects
	each.kind == "ScaledObject"
	some trigger in each.spec.triggers
	trigger.type == "rabbitmq"
}

keyed := {replace(replace(queue, ".interactive", ".0123456789ab.interactive"), ".batch", ".0123456789ab.batch") |
	some queue in input.queues
}

deny contains sprintf("ScaledObject %s: must ask RabbitMQ by HTTP, or what workers hold does not count", [each.of]) if {
	some each in triggers
	object.get(each.metadata, "protocol", "") != "http"
}

deny contains sprintf("ScaledObject %s: %s counts no queue of docs/queue.md", [each.of, each.metadata.queueName]) if {
	some each in triggers
	count({queue | some queue in keyed; regex.match(each.metadata.queueName, queue)}) == 0
}

deny contains sprintf("ScaledObject %s: %s counts dead letters", [each.of, each.metadata.queueName]) if {
	some each in triggers
	regex.match(each.metadata.queueName, "smalti.decode.dead")
}

deny contains sprintf("no ScaledObject counts %s", [queue]) if {
	count(triggers) > 0
	some queue in keyed
	not counted(queue)
}

counted(queue) if {
	some each in triggers
	regex.match(each.metadata.queueName, queue)
}
