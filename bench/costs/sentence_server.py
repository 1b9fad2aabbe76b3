"""The peer of `embeddings`: sentence-transformers behind a plain FastAPI, as its readers write it.

`python -m bench.costs.sentence_server FOLDER threads|serial PORT`
"""

import base64
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    """What the benchmark sends."""

    model: str
    input: list[str]
    encoding_format: str


def main(folder: str, way: str, port: str) -> None:
    """Serve until the process is ended."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    app = FastAPI()

    def embedded(body: Body) -> dict[str, Any]:
        vectors = model.encode(body.input, batch_size=32, show_progress_bar=False)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode(),
            }
            for index, row in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": body.model}

    async def in_turn(body: Body) -> dict[str, Any]:
        return embedded(body)

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    app.post("/v1/embeddings")(embedded if way == "threads" else in_turn)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
