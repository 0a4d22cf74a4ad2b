"""What `feast` sees of this project: the entities, views and services that a publication registers, for the encoders that have vectors.

`moon publish` applies the same objects, and never deletes any. Feast's own command does: run it in this directory, with the MOON_HOME
whose tables you mean, as `feast -f $MOON_HOME/feature_store/feature_store.yaml apply`.
"""

from moon_ops.embeddings.features import versions
from moon_ops.publication.publication import definitions
from moon_ops.settings import Settings

settings = Settings.from_environment()
# Feast picks up global variables only, not lists of objects.
globals().update({f"{type(thing).__name__}_{thing.name}": thing for thing in definitions(settings, versions(settings.lake))})
