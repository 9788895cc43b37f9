"""What can be refused of options that serve a model before anything is started."""

from __future__ import annotations

from miles_lite.config.serving import Serving
from miles_lite.hooks import check_hooks, hooks_of
from miles_lite.model_folder import check_model_folder
from miles_lite.stack.engine_plans import check_engines


def check_serving(options: Serving) -> None:
    """Raises UserError for contradictions, engines that cannot be, a folder that is no model's, and functions that
    cannot be called."""
    options.check()
    check_engines(options.topology, options.engines)
    check_model_folder(options.model.hf_checkpoint)
    check_hooks(hooks_of(options.session))
