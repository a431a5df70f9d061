import typer

from training.ladders.command import ladders_command

typer.run(ladders_command)
