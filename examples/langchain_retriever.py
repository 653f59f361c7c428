"""A run's retriever and index in LangChain.

    python examples/langchain_retriever.py --run runs/one --question "who leads zor via ?"

Needs langchain-core. Without a run: a small new model on a few facts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from tiny_models import open_run

import ds_rag


class TrainedRetriever(BaseRetriever):
    """The `k` best passages of an index for a query, with id, document and score."""

    index: Any  # ds_rag.Index
    k: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        scores_1k, numbers_1k = self.index.search([query], self.k)
        return [
            Document(
                page_content=self.index.texts[n],
                id=self.index.ids[n],
                metadata={"score": float(score), "document": self.index.documents[n]},
            )
            for score, n in zip(scores_1k[0], numbers_1k[0], strict=True)
            if n >= 0
        ]


def main(arguments: list[str] | None = None) -> list[Document]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the folder of a finished run")
    parser.add_argument("--question", default="what is the emblem of a place ?")
    args = parser.parse_args(arguments)
    index: ds_rag.Index = open_run(args.run)
    documents: list[Document] = TrainedRetriever(index=index).invoke(args.question)
    for document in documents:
        print(f"{document.metadata['score']:7.3f}  {document.page_content}")
    return documents


if __name__ == "__main__":
    main()
