/**
 * A list that is too long for one statement, read piece by piece in the worker (pure): each goes out while the next is read, and no
 * round to the worker lies between the two.
 */

/** What the statement finds after a place, at most so many rows. */
export interface Piece {
  /** The rows as one text. */
  readonly rows: string | null
  readonly n: number
  /** Place of the last of them; null: there are none. */
  readonly last: number | null
  /** null: nothing follows. */
  readonly next: number | null
  /** 0: what these rows are is not what the statement reads; whoever asked reads them in another way. */
  readonly plain: number
}

export interface WalkLimits {
  /** Rows of the first piece: they may be large. */
  readonly firstRows: number
  /** Later pieces end at the first of both. */
  readonly pieceRows: number
  readonly pieceBytes: number
  /** A larger piece is the last one: a few rows are large. */
  readonly mostPieceBytes: number
  /** It ends with the piece that reaches so many bytes. */
  readonly mostBytes: number
}

export interface Walk extends WalkLimits {
  readonly after: number
  /** What was read before. */
  readonly rows: number
  readonly bytes: number
}

/** Rows of the next piece, when so many were read. */
export const rowsOfPiece = (
  { firstRows, pieceRows, pieceBytes }: Omit<WalkLimits, "mostBytes" | "mostPieceBytes">,
  rows: number,
  bytes: number,
): number => (rows === 0 ? firstRows : Math.max(1, Math.min(pieceRows, Math.ceil(pieceBytes / (bytes / rows)))))

/** `isEnd`: it goes no further. */
export type Step<P extends Piece> = P & { readonly isEnd: boolean }

export const walk = function* <P extends Piece>(read: (after: number, limit: number) => P, from: Walk): Generator<Step<P>, void> {
  let { after, rows, bytes } = from
  for (let isEnd = false; !isEnd; ) {
    const piece = read(after, rowsOfPiece(from, rows, bytes))
    const size = piece.rows?.length ?? 0
    rows += piece.n
    bytes += size
    isEnd = piece.next === null || piece.last === null || piece.plain === 0 || size > from.mostPieceBytes || bytes >= from.mostBytes
    after = piece.last ?? after
    yield { ...piece, isEnd }
  }
}
