/** Commit times as the stream prints them -> microseconds since 1970 (pure). */

/** `"2026-01-01 08:00:00.123456+00"` -> microseconds since 1970. */
export const commitMicros = (text: string): number => {
  const match = /^(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})(?:\.(\d{1,6}))?([+-]\d{2})$/.exec(text)
  if (match === null) return 0
  return Date.parse(`${match[1]}T${match[2]}${match[4]}:00`) * 1000 + Number((match[3] ?? "").padEnd(6, "0"))
}

/** The same, quicker for the many commits of one second. */
export const rememberSecond = (): typeof commitMicros => {
  let opening = "-"
  let zone = ""
  let base = 0
  return (text) => {
    // ….123456+00
    if (text.length !== 29 || !text.startsWith(opening) || !text.endsWith(zone)) {
      if (text.length === 29 && commitMicros(text) !== 0) {
        opening = text.slice(0, 20)
        zone = text.slice(26)
        base = commitMicros(`${opening}000000${zone}`)
      }
      return commitMicros(text)
    }
    return base + (Number(text.slice(20, 26)) || 0)
  }
}
