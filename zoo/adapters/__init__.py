"""All that PEFT methods stand on: target modules, routing of rows, merging, files, exchange with HF PEFT."""
