"""Calls a server with the clients that people have, in an environment of their own (.venv-sdk), and prints JSON.

    python tests/support/sdks.py CLIENT BASE_URL KEY TEXTS

CLIENT: openai, langchain or llama_index. TEXTS: a JSON list. Printed: `vectors`, or the `error` that the client raised.
openai adds `numbers`, asked for as numbers, `tokens` of its usage, `models`, and `one` of them; the other two `query`, the
first text as a query, and langchain `as_it_is`, the error of its default, which sends ids of tokens.
"""

import json
import sys


def by_openai(base_url: str, key: str, texts: list[str]) -> dict:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key=key, max_retries=0)
    answer = client.embeddings.create(input=texts, model="clip")
    numbers = client.embeddings.create(input=texts, model="clip", encoding_format="float")
    return {
        "vectors": [one.embedding for one in answer.data],
        "numbers": [one.embedding for one in numbers.data],
        "tokens": answer.usage.total_tokens,
        "models": [model.id for model in client.models.list()],
        "one": client.models.retrieve("clip").id,
    }


def by_langchain(base_url: str, key: str, texts: list[str]) -> dict:
    import tiktoken.registry
    from langchain_openai import OpenAIEmbeddings

    settings = {"base_url": base_url, "api_key": key, "model": "clip", "max_retries": 0}
    embeddings = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    found = {"vectors": embeddings.embed_documents(texts), "query": embeddings.embed_query(texts[0])}
    # Its default makes ids of OpenAI's tokens, whose list it would download: here each byte is a token.
    vocabulary = {bytes([byte]): byte for byte in range(256)}
    byte_by_byte = tiktoken.Encoding(name="bytes", pat_str="(?s).", mergeable_ranks=vocabulary, special_tokens={})
    tiktoken.registry.ENCODINGS["cl100k_base"] = byte_by_byte
    try:
        OpenAIEmbeddings(**settings).embed_query(texts[0])
    except Exception as error:  # any: it is the result
        found["as_it_is"] = f"{type(error).__name__}: {error}"
    return found


def by_llama_index(base_url: str, key: str, texts: list[str]) -> dict:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeddings = OpenAIEmbedding(model_name="clip", api_base=base_url, api_key=key, max_retries=0)
    return {"vectors": embeddings.get_text_embedding_batch(texts), "query": embeddings.get_query_embedding(texts[0])}


def main(client: str, base_url: str, key: str, texts: str) -> None:
    call = {"openai": by_openai, "langchain": by_langchain, "llama_index": by_llama_index}[client]
    try:
        found = call(base_url, key, json.loads(texts))
    except Exception as error:  # any: the test says which it expects
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
