"""A run's retriever and index in LlamaIndex.

    python examples/llama_index_retriever.py --run runs/one --question "who leads zor via ?"

Needs llama-index-core. Without a run: a small new model on a few facts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from tiny_models import open_run

import ds_rag


class TrainedRetriever(BaseRetriever):
    """The `k` best passages of an index for a query, with id, document and score."""

    def __init__(self, index: ds_rag.Index, k: int = 4):
        super().__init__()
        self.index, self.k = index, k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        index = self.index
        scores_1k, numbers_1k = index.search([query_bundle.query_str], self.k)
        return [
            NodeWithScore(
                node=TextNode(text=index.texts[n], id_=index.ids[n], metadata={"document": index.documents[n]}),
                score=float(score),
            )
            for score, n in zip(scores_1k[0], numbers_1k[0], strict=True)
            if n >= 0
        ]


def main(arguments: list[str] | None = None) -> list[NodeWithScore]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the folder of a finished run")
    parser.add_argument("--question", default="what is the emblem of a place ?")
    args = parser.parse_args(arguments)
    nodes: list[NodeWithScore] = TrainedRetriever(open_run(args.run)).retrieve(args.question)
    for node in nodes:
        print(f"{node.score:7.3f}  {node.get_content()}")
    return nodes


if __name__ == "__main__":
    main()
