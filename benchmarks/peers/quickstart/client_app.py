"""The ClientApp: a handler for training and one for evaluation."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_partition, load_share, test, train

app = ClientApp()


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the global model on the client's images."""
    config, net = message.content["config"], _net(message)
    batches = load_partition(_partition(context), int(config["batch-size"]))
    loss = train(net, batches, int(config["local-epochs"]), float(config["lr"]))
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(batches.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_locally(message: Message, context: Context) -> Message:
    """Test the global model on as many of the client's images as a quickstart holds out."""
    batches = load_share(_partition(context), 0.2)
    accuracy = test(_net(message), batches)
    metrics = MetricRecord({"eval_acc": accuracy, "num-examples": len(batches.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net
