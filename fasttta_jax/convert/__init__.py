"""Published weights of other code bases to parameter trees of this one, without their frameworks.

`python -m fasttta_jax.convert KIND CHECKPOINT OUT` is the entry point (`__main__`). A conversion
goes through one file each: `read` opens the checkpoint and `torch_files` its torch pickles, `mar`
(one module per kind) says which key goes where, `names` holds that table against the file, and
`write` puts the result on disk, where `fasttta_jax.converted` finds it.
"""
