"""H&M Personalized Fashion Recommendations: two years of purchases of 1.4 million customers, with a picture and a text per article.

https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations. What is read of it::

    articles.csv                      article_id, product_code, prod_name, detail_desc, names of product type and group, colour, …
    transactions_train.csv            t_dat (a day), customer_id, article_id, price, sales_channel_id
    images/012/0123456789.jpg         one picture of most articles, in directories by the first three of ten digits

Serves a catalogue of pictures and texts with purchases: without impressions and clicks there is no click model, and without queries no
stage that contrasts them with items. An article is an item, its product_code the SPU. Of a day only the date is published: the purchases
of one follow each other by a microsecond, in the order of the file, so that two of the same article stay two. Prices are scaled by the
publisher and have no currency; an item gets the one that was paid last. customers.csv and sales_channel_id have no place in the layout.
An article_id is read as the number that it is: 0108775015 becomes 108775015.
"""

from __future__ import annotations

from pathlib import Path

from moon_ops.shops.importers import files
from moon_ops.shops.importers.shop import Draft

ATTRIBUTES = {  # column → name
    "colour_group_name": "colour",
    "graphical_appearance_name": "pattern",
    "garment_group_name": "garment",
    "section_name": "section",
}
CATEGORY = ("index_group_name", "product_group_name", "product_type_name")  # root → leaf
ARTICLES = ("article_id", "product_code", "prod_name", "detail_desc", *CATEGORY, *ATTRIBUTES)
TRANSACTIONS = ("t_dat", "customer_id", "article_id", "price")
KINDS = "{'t_dat': 'DATE', 'customer_id': 'VARCHAR', 'article_id': 'BIGINT', 'price': 'DOUBLE'}"
READ = "read_csv({files}, header = true, delim = ',', quote = '\"', escape = '\"', {kinds})"

LOG = """
SELECT t_dat + to_microseconds(row_number() OVER (PARTITION BY t_dat ORDER BY place)) AS timestamp, customer_id AS user_id,
       article_id AS item_id, 'purchase' AS event
FROM bought"""

CATALOGUE = """
SELECT article_id::BIGINT AS item_id, product_code::BIGINT AS spu_id, prod_name AS title, concat_ws(' > ', {category}) AS category,
       detail_desc AS description, map([{names}], [{values}]) AS attributes, paid.price
FROM {articles} JOIN (SELECT article_id AS item_id, arg_max(price, (t_dat, place)) AS price FROM bought GROUP BY article_id) paid
    ON paid.item_id = article_id::BIGINT"""


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a file or a column that is not there."""
    articles, transactions = source / "articles.csv", source / "transactions_train.csv"
    for path in (articles, transactions):
        if not path.is_file():
            raise files.absent(source, path.name)
    files.csv_columns(articles, ARTICLES)
    files.csv_columns(transactions, TRANSACTIONS)
    read = READ.format(files=files.names([transactions]), kinds=f"types = {KINDS}")
    with files.reading(transactions):
        draft.make("transactions", f"SELECT {', '.join(TRANSACTIONS)} FROM {read}")
    draft.view("people", "SELECT customer_id AS user_id FROM transactions")
    draft.sample("people", users)
    draft.view("bought", "SELECT *, rowid AS place FROM transactions WHERE customer_id IN (SELECT user_id FROM chosen)")
    draft.make("log", LOG)
    catalogue = CATALOGUE.format(
        category=", ".join(CATEGORY),
        names=", ".join(f"'{name}'" for name in ATTRIBUTES.values()),
        values=", ".join(ATTRIBUTES),
        articles=READ.format(files=files.names([articles]), kinds="all_varchar = true"),
    )
    with files.reading(articles):
        draft.make("catalogue", catalogue)
    draft.picture_of = lambda item: (source / _picture(item), _picture(item))


def _picture(item: int) -> str:
    """Where the data set keeps an article's picture, and the shop too."""
    digits = f"{item:010d}"
    return f"images/{digits[:3]}/{digits}.jpg"
