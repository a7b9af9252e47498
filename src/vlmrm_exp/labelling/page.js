// Sends a press with the turn in which it was made, and no label before the picture is there.
// The server takes one press for each turn, however fast the keys come.
let since = null; // when this turn's picture was there first, in ms

const turn = () => document.querySelector(".rate")?.dataset.turn;

function shown() {
  const seen = document.querySelector(".stage .now");
  if (!seen) return true; // all is done; there is only undo
  return seen.tagName === "IMG" ? seen.complete && seen.naturalWidth > 0 : seen.readyState >= 2;
}

let watched = null;
function watch() {
  if (turn() !== watched && shown()) {
    watched = turn();
    since = performance.now();
  }
  requestAnimationFrame(watch);
}
requestAnimationFrame(watch);

function press(button, emit) {
  const now = turn();
  // A picture that cannot be loaded can still be skipped.
  if (now !== watched && !button.closest(".more")) return;
  button.classList.add("pressed");
  setTimeout(() => button.classList.remove("pressed"), 150);
  button.blur(); // or Enter would press it again
  emit({ turn: now, seconds: (performance.now() - since) / 1000 });
}

document.addEventListener("keydown", (event) => {
  if (!turn() || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  // Where digits need Shift, as in France, the key still counts.
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const key = digit ? digit[1] : event.key.toLowerCase();
  const button = [...document.querySelectorAll(".rate button")].find(
    (one) => one.dataset.keys.split(" ").includes(key));
  if (!button) return;
  event.preventDefault();
  if (!button.disabled) button.click();
});
