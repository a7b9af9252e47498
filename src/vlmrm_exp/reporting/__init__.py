"""From folders of runs and studies to one page: read, group, plot, write."""
