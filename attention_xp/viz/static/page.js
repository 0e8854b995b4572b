
// The page: head_view.js stands above in the same script, the data in an element of its own.
const page = JSON.parse(document.getElementById("attention-data").textContent);

function decoded(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const { shape: [layers, heads], ...rest } = page.about;
const data = { layers, heads, ...rest, thumbs: decoded(page.thumbs), codes: (l, h) => decoded(page.codes[l * heads + h]) };
const view = new View(document.getElementById("attention-view"), data, { layer: page.layer, head: page.head });

// The tokens get the height that all else leaves, so that the sentence below them is in sight.
function fit() {
  const below = view.scroll.parentElement.getBoundingClientRect().bottom + scrollY;
  view.scroll.style.maxHeight = `${Math.max(240, innerHeight - (below - view.scroll.offsetHeight) - 12)}px`;
}
addEventListener("resize", fit);
fit();
