"""MLServer: grpc.aio with its adaptive batches. Triton's protocol, since its protobuf is too old for Fathom's messages.

A history is one string, its ids joined by newlines: MLServer makes batches of equal shapes only.
"""

import asyncio
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings, types
from mlserver.settings import ModelParameters

from fathom.benchmarks.peer_servers.ready import answers_http, tell_when_ready
from fathom.benchmarks.peer_servers.recommender import Asked, Recommender
from fathom.benchmarks.ports import free_port

NAME = "by-hand"


class Answers(MLModel):
    """The model."""

    async def load(self) -> bool:
        """Open everything."""
        self._recommender = Recommender.open(self.settings.parameters.uri)
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """The answers of a batch."""
        histories, depths = (list(each.data) for each in payload.inputs)
        asked = [
            Asked(bytes(history).decode().split("\n"), int(depth))
            for history, depth in zip(histories, depths, strict=True)
        ]
        found = [each.item_ids for each in self._recommender.run(asked)]
        names = [name.encode() for row in found for name in row]
        output = types.ResponseOutput(
            name="recommended", datatype="BYTES", shape=[len(found), len(found[0])], data=names
        )
        return types.InferenceResponse(model_name=NAME, id=payload.id, outputs=[output])


async def serve(bundle: str, batch: int, wait_ms: float) -> None:
    """Until it is ended. Without a process for models: on one core that only adds a hop."""
    grpc_port, http_port = free_port(), free_port()
    settings = Settings(
        host="127.0.0.1",
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(
        name=NAME,
        implementation=Answers,
        max_batch_size=batch,
        max_batch_time=wait_ms / 1e3,
        parameters=ModelParameters(uri=bundle),
    )
    is_ready = answers_http(f"/v2/models/{NAME}/ready")
    tell_when_ready(grpc_port, lambda _: is_ready(http_port))
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
