"""What a user writes, as typed options: `fuse.fuse_options` and `postgres.postgres_options` are the two doors.

    dictionary    the serialized dictionary                  pure text
    settings      fields, precedence, origins, value checks  what all the ways share
    environment   variables      ─┐
    document      YAML            ├─ the ways, each into sections of settings
    commands      -d commands    ─┘
    fuse postgres                                            the rules of each battery, and its options
    exports                                                  options as shell variables

Rule 1: nothing here reads the environment or a file, prints or exits: all of that comes in as arguments.
Rule 2: nothing stops at the first fault. ParametersError carries all of them, each with its place.
"""
