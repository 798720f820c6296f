"""What makes two runs one: the recipe, the weights, the tokenizer, and what its local texts hold now."""

from pathlib import Path

from backend.documents import FILE
from backend.host import Host, check_local
from backend.models import fingerprint
from backend.recipe import Recipe
from backend.whole_files import file_digest


def run_digest(recipe: Recipe, host: Host) -> str:
    """64 hex digits; a changed text file or tokenizer makes another run, as changed weights do."""
    told = [fingerprint(recipe.model, host)]
    for name in sorted({*recipe.texts, recipe.evaluation.text}):
        if name.startswith(FILE):
            place = check_local(name.removeprefix(FILE), host)
            told.append(file_digest(place, host) if place.is_file() else "missing")
    return recipe.digest("\n".join(told))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for a worker that was started in another folder."""
    sections = {
        name: section.model_copy(update={"text": FILE + str(_absolute(section.text.removeprefix(FILE)))})
        for name in ("calibration", "evaluation")
        if (section := getattr(recipe, name)).text.startswith(FILE)
    }
    stages = tuple(
        stage.model_copy(
            update={"params": {**stage.params, "text": FILE + str(_absolute(stage.text.removeprefix(FILE)))}}
        )
        if stage.text.startswith(FILE)
        else stage
        for stage in recipe.stages
    )
    local = recipe.model.startswith((".", "~"))
    model = {"model": str(_absolute(recipe.model))} if local else {}
    return recipe.model_copy(update={**sections, **model, "stages": stages})


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
