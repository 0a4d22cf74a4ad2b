"""What `feast` sees of this project: the entities, views and services of moon_ops.embeddings.features, for the encoders that have vectors.

`feast apply` deletes what this file no longer yields, so run it with the MOON_HOME (or MOON_LAKE) whose tables you mean. `moon publish`
applies the same objects and never deletes.
"""

from moon_ops.embeddings.features import definitions, prepare, versions
from moon_ops.settings import Settings

settings = Settings.from_environment()
prepare(settings.home, settings.redis)
# Feast picks up global variables only, not lists of objects.
globals().update({f"{type(thing).__name__}_{thing.name}": thing for thing in definitions(settings.lake, versions(settings.lake))})
