"""Where a sweep runs and how it gets there: Ray, SSH, AWS. Begin with `place`. Importing the package imports nothing."""
