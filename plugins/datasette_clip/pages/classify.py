"""Renders the page /-/clip/classify: a picture, and the labels that fit it best."""

from __future__ import annotations

import json
import re
import time
from itertools import islice
from typing import TYPE_CHECKING

from datasette.utils.asgi import Response

from datasette_guard import limits_of
from llm_clip_onnx import zero_shot
from llm_clip_onnx.errors import InputError, cited

from .. import labels
from ..config import PLUGIN, Config, config_of
from ..items import FormFields, check_text, read_k
from ..model import embedding_queue, in_thread
from ..paths import CLASSIFY
from .form_page import LINE, K, Page, chosen_engine, model_fields, read_page_pictures, render_form
from .links import curl_command, fitting_path, sql_page_path, sql_text
from .samples import pictures_to_try, read_sample

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine

LABEL = re.compile(r'"([^"\r\n]+)"(?=\s*(?:,|$))|[^\s,][^,\r\n]*', re.MULTILINE)


async def classify_page(datasette, request) -> Response:
    """A picture, and the labels of a label set or of a list that fit it best."""
    return await render_form(datasette, request, "classify.html", fill_classify)


async def fill_classify(datasette, request, fields: FormFields, page: Page) -> None:
    """Fill the page with the labels that fit the picture best."""
    config = config_of(datasette)
    page["pictures"] = page["pictures"][-2:]  # the one that the page keeps, and the one that was just sent
    page |= {"k": fields.last("k", K), "own": fields.last("own")}
    page["samples"] = await pictures_to_try(datasette, request)
    if not page["pictures"] and (sample := fields.last("sample")):
        page["pictures"] = [await read_sample(datasette, request, sample)]
    for text in (page["own"], *fields.all("labels")):
        check_text(config, text)
    page |= chosen_labels(fields)
    engine = await chosen_engine(config, fields, page)
    page |= await in_thread(label_choices, engine, page)
    if not page["pictures"]:
        if request.method == "POST":
            raise InputError("there is no picture yet; choose, drop or paste one")
        return
    with embedding_queue(datasette).slot():
        begun_s = time.perf_counter()
        await read_page_pictures(datasette, request, engine, page)
        page["pictures"] = page["pictures"][-1:]  # the one that was just sent, if it can be read
        page |= await in_thread(best_labels, engine, config, page)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    page |= await other_ways(datasette, request, page)


def chosen_labels(fields: FormFields) -> Page:
    """The labels that a form chooses. chosen: a label set, None for the default one, "" for `own`, labels as typed.

    Typed labels win over the chosen set, unless the page had `shown` the same ones already.
    """
    sent, own = fields.all("labels"), fields.last("own")
    chosen = sent[0] if sent else None
    if len(sent) > 1:
        chosen, own = "", as_typed(sent)
    elif chosen and chosen.lstrip().startswith("["):  # a permalink has a list in JSON
        chosen, own = "", as_typed(read_list(chosen))
    elif own.strip() and with_plain_ends(own) != with_plain_ends(fields.last("shown")):
        chosen = ""
    elif not chosen and not own.strip():
        chosen = None
    return {"chosen": chosen, "own": own}


def with_plain_ends(text: str) -> str:
    """A text with \n as its line ends, stripped."""
    return text.replace("\r\n", "\n").strip()


def as_typed(names: list[str]) -> str:
    """Labels, one a line, from which `labels_of` reads them. Raises InputError for one that cannot be typed."""
    for position, label in enumerate(names):
        if len(LINE.findall(label)) > 1:
            raise InputError(f"label {position} is {cited(label)}; on this page a label is a line")
        if '"' in label and ("," in label or label.lstrip().startswith('"')):
            raise InputError(f"label {position} is {cited(label)}; on this page quotation marks are around commas")
    return "\n".join(f'"{label}"' if "," in label else label for label in names)


def labels_of(text: str, most: int) -> list[str]:
    """The labels in a text, between commas and ends of lines. If there are more than `most`, one more than that.

    A label in quotation marks may have commas: "Paris, Texas".
    """
    return [(label[1] or label[0]).strip() for label in islice(LABEL.finditer(text), most + 1)]


def read_list(text: str) -> list[str]:
    """The labels in a JSON list. Raises InputError."""
    try:
        return [str(label) for label in json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise InputError(f"labels begins as a JSON list and is none: {error}") from error


def label_choices(engine: Engine, page: Page) -> Page:
    """The label sets with their sizes, and the chosen one; another one, with a sentence, if this model lacks that.

    Raises InputError if the model has no set at all and no labels are typed.
    """
    sets = {name: len(engine.label_set(name).labels) for name in labels.sets_of(engine)}
    chosen = page["chosen"]
    if chosen is None:
        chosen = labels.default_set(engine) if sets else ""
    elif chosen and chosen not in sets and page["models"]:  # it is another model's, chosen before
        missing = f"the model {cited(page['model'])} has no label set {cited(chosen)} that can be used"
        if not sets and not page["own"].strip():
            raise InputError(f"{missing}, and no other one; expected labels of your own")
        chosen = labels.default_set(engine) if sets else ""
        page["errors"].append(f"{missing}; these are {f'of its set {chosen}' if sets else 'your own labels'}")
    return {"sets": sets, "chosen": chosen}


def best_labels(engine: Engine, config: Config, page: Page) -> Page:
    """The best labels for the picture. Raises InputError and ModelDirError for labels or a k that cannot be used."""
    k, most = read_k(page["k"]), config.limits.prompts
    own = labels_of(page["own"], most)
    if not page["chosen"] and len(own) > most:
        raise InputError(
            f"there are more than {most} labels; at most so many are embedded for a request "
            f"(plugins.{PLUGIN}.limits.prompts): bake a label set of them"
        )
    classifier = labels.classifier_of(engine, config.limits, page["chosen"] or own)
    matches = engine.classify(classifier, page["pictures"][0].embedding, k)
    none_of_these = zero_shot.is_none_of_these(classifier, matches[0])
    facts: Page = {"count": len(classifier.labels), "unrelated_cosine": classifier.unrelated_cosine}
    facts |= {"scores": engine.manifest.scores, "even_cosine": engine.manifest.even_cosine}
    facts |= {
        "prompt": zero_shot.prompts_of(matches[0].label, classifier.templates[:1])[0],
        "prompts": len(classifier.templates),
    }
    return facts | {"matches": [bar_of(match) for match in matches], "none_of_these": none_of_these}


def bar_of(match: zero_shot.Match) -> dict:
    """A match, with its probability in percent and as the width of a bar."""
    percent = 100 * match.probability
    as_text = f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"
    return {"label": match.label, "cosine": match.cosine, "percent": as_text, "width": round(percent, 2)}


async def other_ways(datasette, request, page: Page) -> Page:
    """The same answer by URL, in SQL and by curl."""
    limits = config_of(datasette).limits
    names = page["chosen"] or json.dumps(labels_of(page["own"], limits.prompts), ensure_ascii=False)
    img = page["pictures"][0].img
    model = f", {sql_text(page['model'])}" if page["models"] else ""
    sql = f"select clip_classify(clip_image(:img), {sql_text(names)}, {int(page['k'])}{model})"
    url = datasette.absolute_url(request, datasette.urls.path(f"{CLASSIFY}.json"))
    form = ["-F", "image=@photo.jpg", "--form-string", f"labels={names}", "-F", f"k={page['k']}"]
    form += [part for name, id in model_fields(page) for part in ("-F", f"{name}={id}")]
    picture = page["pictures"][0]
    query = {"labels": names, "k": page["k"], "name": picture.name, "vector": picture.vector}
    query |= dict(model_fields(page))
    return {
        "permalink": fitting_path(datasette, datasette.urls.path(CLASSIFY), query),
        "url_bytes": limits_of(datasette).url_bytes,
        "sql": sql,
        "sql_page": await sql_page_path(datasette, request, {"sql": sql, "img": img}),
        "curl": curl_command(datasette, *form, "-F", "orient=exif", url),
    }
