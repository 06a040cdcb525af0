/** Waits for what a test expects to come by itself. */
const LIMIT_MS = 40_000

/**
 * Looks until there is something, and answers it; fails with what was waited for. A look that throws counts as nothing: a
 * service may not be there yet.
 */
export const until = async <A>(
  what: string | (() => string),
  look: () => A | undefined | null | false | Promise<A | undefined | null | false>,
  limitMs = LIMIT_MS,
): Promise<A> => {
  let last: unknown
  for (const deadline = Date.now() + limitMs; ; ) {
    const found = await Promise.resolve()
      .then(look)
      .catch((cause: unknown) => {
        last = cause
        return undefined
      })
    if (found !== undefined && found !== null && found !== false) return found
    if (Date.now() > deadline)
      throw new Error(`waited too long for ${typeof what === "string" ? what : what()}${last === undefined ? "" : `: ${String(last)}`}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** Asks again until the answer is right; fails with the last one. */
export const becomes = async <A>(question: () => A | Promise<A>, isRight: (answer: A) => boolean, limitMs = 10_000): Promise<void> => {
  let last: A | undefined
  const look = async () => {
    last = await question()
    return isRight(last)
  }
  await until(() => `another answer than ${JSON.stringify(last, (_, value) => (typeof value === "bigint" ? String(value) : value))}`, look, limitMs)
}
