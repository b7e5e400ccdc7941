"""Those who label: work goes in, units come out. In this process, or by Ray on every GPU of a machine or a cluster."""
