"""Published weights of other code bases to parameter trees of this one, without their frameworks.

`python -m fasttta_jax.convert KIND SOURCE OUT` is the entry point (`__main__`). A conversion goes
through one file each: `source` finds the weights (a folder, a file, the Hub), `read` opens them and
`torch_files` those of torch among them, whose pickles `unpickler` rebuilds, a module per kind
(`mar`, `vae`, `hifigan`, `t5`, `panns`, `vggish`, `clap` with `clap_text` and `clap_audio`) says
which key goes where, `names` compares that table with the file, `tokenizer` reads a text model's
vocabulary, and `write` puts the result on disk, where `fasttta_jax.storage.weights` finds it.
"""
