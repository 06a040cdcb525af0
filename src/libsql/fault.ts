/** What the driver says of a failure, as SQLite's code and words (pure). Of a connection that cannot be opened it tells only the number. */

const CODES: Readonly<Record<number, string>> = {
  5: "SQLITE_BUSY",
  8: "SQLITE_READONLY",
  10: "SQLITE_IOERR",
  13: "SQLITE_FULL",
  14: "SQLITE_CANTOPEN",
  23: "SQLITE_AUTH",
}

export const faultOf = (error: unknown): { readonly code: string; readonly message: string } => {
  const { code, message } = error as { readonly code?: string; readonly message?: string }
  const number = /Unable to open connection to local database .*: (\d+)/.exec(message ?? "")?.[1]
  if (number !== undefined) return { code: CODES[Number(number) & 255] ?? "SQLITE_ERROR", message: "unable to open the database file" }
  return { code: code === undefined || code === "" ? "SQLITE_ERROR" : code, message: message ?? String(error) }
}
