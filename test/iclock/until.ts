/** Asks again until the answer is right; fails with the last one. */
export const until = async <A>(question: () => A | Promise<A>, isRight: (answer: A) => boolean, limitMs = 10_000): Promise<void> => {
  for (const deadline = Date.now() + limitMs; ; ) {
    const answer = await question()
    if (isRight(answer)) return
    if (Date.now() > deadline) throw new Error(`still ${JSON.stringify(answer)}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
