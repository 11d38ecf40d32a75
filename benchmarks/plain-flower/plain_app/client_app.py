"""The ClientApp: a handler for training and one for evaluation."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain_app.task import Net, evaluate, load, train

app = ClientApp()


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the global model on the site's images."""
    net = _net(message)
    images_NCHW, labels_N = load(int(str(context.node_config["partition-id"])))
    loss = train(net, images_NCHW, labels_N)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(labels_N)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_locally(message: Message, context: Context) -> Message:
    """Test the global model on the site's images."""
    images_NCHW, labels_N = load(int(str(context.node_config["partition-id"])))
    accuracy = evaluate(_net(message), images_NCHW, labels_N)
    metrics = MetricRecord({"eval_accuracy": accuracy, "num-examples": len(labels_N)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return net
