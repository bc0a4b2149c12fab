"""What a build will take, before anything runs: sizes by arithmetic, times by rates that were measured here or are marked as given."""
