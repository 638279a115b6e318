"""`python -m data.soundscapes`; see `data.soundscapes.build`."""

from absl import app

from data.soundscapes import build

if __name__ == "__main__":
    build.define_flags()
    app.run(build.main)
