"""NetTailor students, the backbones that they are cut from, and their losses."""
