"""Zero-, one- and few-shot tasks: from a YAML file to a metric with its standard error."""
