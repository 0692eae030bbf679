"""Assignment of rows to columns with the highest total weight: the Hungarian problem, sparse and exact.

Legend: n rows, m columns, E pairs of positive weight.
"""

import numpy as np


def assign(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (k,) and columns (k,) of the pairs whose weights have the highest sum, sorted by row.

    weights: (n, m), finite. Each row and column is in one pair at most, and pairs of weight 0 or less are never formed.
    """
    rows, columns = np.nonzero(weights > 0)  # (E,)
    alone = (np.bincount(rows, minlength=1)[rows] == 1) & (np.bincount(columns, minlength=1)[columns] == 1)
    pairs = [np.stack((rows[alone], columns[alone]))]
    rows, columns = rows[~alone], columns[~alone]
    component = _components(rows, columns)
    for label in np.unique(component):
        own = component == label
        own_rows, own_columns = np.unique(rows[own]), np.unique(columns[own])
        chosen_rows, chosen_columns = _assign_dense(weights[np.ix_(own_rows, own_columns)])
        pairs.append(np.stack((own_rows[chosen_rows], own_columns[chosen_columns])))
    joined = np.concatenate(pairs, axis=1)
    joined = joined[:, joined[0].argsort(kind="stable")]
    return joined[0], joined[1]


def _components(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return for each pair (E,) the lowest row that pairs connect it with: no solution leaves such a component."""
    label = rows.copy()
    while True:
        previous = label
        for ends in (columns, rows):
            lowest = np.full(int(ends.max(initial=-1)) + 1, np.iinfo(np.int64).max)
            np.minimum.at(lowest, ends, label)
            label = lowest[ends]
        if np.array_equal(label, previous):
            return label


def _assign_dense(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve one component (n, m) by shortest augmenting paths (Jonker and Volgenant, 1987).

    Each row has a column of its own in addition, of weight 0, which stands for no partner.
    """
    if len(weights) > weights.shape[1]:
        columns, rows = _assign_dense(weights.T)
        return rows, columns
    n, m = weights.shape
    no_partner = np.where(np.eye(n, dtype=bool), 0.0, np.inf)
    cost = np.concatenate((np.where(weights > 0, -weights, np.inf), no_partner), axis=1)  # (n, m + n)
    price = np.zeros(m + n)  # dual variable of each column
    row_of, column_of = np.full(m + n, -1), np.full(n, -1)
    for row in range(n):
        column, came_from = _cheapest_free_column(cost, price, row_of, column_of, row)
        while True:  # along the path, each row takes the column that the next one leaves
            owner = came_from[column]
            row_of[column] = owner
            column_of[owner], column = column, column_of[owner]
            if owner == row:
                break
    rows = np.flatnonzero(column_of < m)
    return rows, column_of[rows]


def _cheapest_free_column(
    cost: np.ndarray, price: np.ndarray, row_of: np.ndarray, column_of: np.ndarray, row: int
) -> tuple[int, np.ndarray]:
    """Find the shortest path from a row without column to a free column, by Dijkstra's algorithm.

    Return that column, and for each column the row before it on the path. `price` is updated.
    """
    distance = cost[row] - price
    came_from = np.full(len(price), row)
    is_open = np.ones(len(price), bool)
    while True:
        column = int(np.where(is_open, distance, np.inf).argmin())
        is_open[column] = False
        owner = row_of[column]
        if owner < 0:
            break
        reduced = cost[owner] - price
        through = distance[column] + reduced - reduced[column]
        shorter = is_open & (through < distance)
        distance[shorter], came_from[shorter] = through[shorter], owner
    price[~is_open] += distance[~is_open] - distance[column]
    return column, came_from
