"""Keeps the models that SQL asks for: llm makes all of them anew for each call, and llm-clip would load CLIP again.

CLIP is loaded while Datasette starts, outside SQL and its limit of one second.
"""

from functools import cache

import llm
from datasette import hookimpl

get_embedding_model = llm.get_embedding_model


@cache
def get_once(model_id):
    print(f"load_once: llm makes the model {model_id}")
    return get_embedding_model(model_id)


llm.get_embedding_model = get_once


@hookimpl
def startup(datasette):
    llm.get_embedding_model("clip").embed("hello world")
