"""Public data sets and your own files as the four tables ``items``, ``queries``, ``pairs`` and ``clicks``.

========== ============================== =========== ===================================
module     data                           grades      fetched by
========== ============================== =========== ===================================
``wands``  Wayfair WANDS, TSV             3           ``wands.fetch(folder)``
``esci``   Amazon Shopping Queries,       4           ``esci.fetch(folder)``
           Parquet
``rair``   ``chenJi/RAIR``, test only     4           streamed from the hub, or ``hf download``
``icecat`` Chorus Icecat, JSON lines      4           by hand, see ``data/README.md``
``plain``  your CSV, JSON lines, Parquet  yours       no need
========== ============================== =========== ===================================

Each has ``read(folder, ..., report=None)``, which returns tables that ``check_tables`` accepts or raises one
``DataError`` that lists every problem with file, row and field. What is left out or cut by choice is no
error: it is counted in the ``ReadReport`` that you may hand in. ``frames``, ``rows``, ``pictures`` and
``download`` hold what the readers share.
"""
