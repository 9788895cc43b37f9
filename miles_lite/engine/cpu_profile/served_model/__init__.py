"""What SGLang takes for models of others (SGLANG_EXTERNAL_MODEL_PACKAGE): while it finds there what it is to serve, it
does not import the two hundred files of its own models, a second of each start; else it does."""
