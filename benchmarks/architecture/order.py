"""The order of the rooms, and of the parts of the large ones: who may import whom."""

from __future__ import annotations

# The rooms and the modules that lie flat, bottom to top: a module may import from lower entries and
# from its own. The records that ops and kernels share are below both.
ORDER = (
    *("version", "optional_modules", "precision", "files", "settings", "operators"),
    *("argument_checks", "backends"),
    *("contrastive.problem", "contrastive.sigmoid.problem", "reference"),
    *("kernels", "distributed", "pooling", "contrastive", "build_report"),
    *("models", "data", "evaluation", "alignment", "analysis", "integrations"),
    *("check", "demo", "cli", "__main__"),
)
# The same inside a room, where its parts are many. A name stands for a folder or for a module.
ORDER_INSIDE = {
    "operators": ("schema", "transforms", "registration"),
    "integrations": (
        *("host", "row_terms", "guided_terms", "listed_pairs"),
        *("sentence_transformers", "open_clip", "lightly", "pytorch_metric_learning"),
    ),
    "contrastive": (
        *("choices", "options", "option_checks", "arguments", "problem", "terms", "chunked"),
        *(
            "blocks",
            "sides",
            "ops",
            "combine",
            "known_gradients",
            "row_loss",
            "one_pass",
            "pair_loss",
        ),
        *("small_batch", "across_ranks", "sigmoid", "one_process", "loss", "module"),
        *("prefix_walk", "matryoshka", "negative_queue", "gradient_cache"),
    ),
    "contrastive.chunked": (
        *("norms", "chunk", "equal_ids", "torch_logits", "gradient_sums", "exponentials"),
        *("torch_passes",),
    ),
    "contrastive.gradient_cache": (
        *("replayed_state", "input_chunks", "gradient_reduction", "second_pass", "cache"),
    ),
    "contrastive.across_ranks": (
        *("shards", "agreement", "all_gather", "ring_pass", "ring", "loss"),
    ),
    "evaluation": (
        *("statistics", "joined_texts", "token_scores", "choice_scoring", "tasks", "vectors"),
        *(
            "finished_parts",
            "in_context_records",
            "in_context",
            "summary",
            "translation",
            "data_report",
        ),
    ),
    "evaluation.tasks": (
        *("items", "release", "xcopa", "xwinograd", "files", "hub"),
        *("prompts", "lm_eval_prompts"),
    ),
    "evaluation.vectors": (
        *("tiles", "geometry", "projection", "retrieval", "margin", "layer_embeddings"),
    ),
    "alignment": (
        *("config", "run_config", "padding", "batch_checks", "packing", "batches"),
        *("finite", "freezing", "model", "model_setup", "live_line", "progress", "schedule"),
        *("trackers", "engines", "step", "train", "records", "content", "checkpoint"),
        *("periodic_evaluation", "closing_table", "stop_request", "run_directory"),
    ),
    "alignment.engines": (
        *("combinations", "launch", "sharded_state", "one_process", "accelerate"),
        *("zero_state", "deepspeed_settings", "deepspeed", "choice"),
    ),
}


def place(module: str, order: tuple[str, ...], prefix: str = "") -> int:
    """Where a module stands in an order; the longest entry that it is, or is inside of, counts."""
    name = module.removeprefix(prefix)
    fits = [entry for entry in order if f"{name}.".startswith(f"{entry}.")]
    assert fits, (
        f"crossalign.{module} has no place in the order of {prefix or 'the rooms'}; add it to "
        "benchmarks/architecture/order.py"
    )
    return order.index(max(fits, key=len))


def points_up(importer: str, imported: str) -> bool:
    """Whether an import runs against the order of rooms, or against the order inside one."""
    if imported == "":  # the package itself, which offers names of every room
        return True
    if place(imported, ORDER) != place(importer, ORDER):
        return place(imported, ORDER) > place(importer, ORDER)
    return any(
        importer.startswith(f"{room}.")
        and imported.startswith(f"{room}.")
        and place(imported, order, f"{room}.") > place(importer, order, f"{room}.")
        for room, order in ORDER_INSIDE.items()
    )
