"""The run folder: nothing else knows a file name in it.

storage.py    files that survive a kill, and locks
info.py       run.json as values
runfolder.py  the layout
tables.py     scores.csv and regions.csv
run.py        `Run`, a finished run
pictures.py   heat maps, thumbnails and crops of a run's images
notebook.py   a run in a notebook
pages.py      templates of HTML
threads.py    a function of many images, in threads
"""
