(function () {
  var root = document.documentElement, bar = document.querySelector(".filters");
  if (!bar) return;
  root.classList.add("js");
  var cards = Array.prototype.slice.call(document.querySelectorAll("#gallery .card"));
  var buttons = Array.prototype.slice.call(bar.querySelectorAll("button"));
  var changed = bar.querySelector("input"), shown = bar.querySelector("output"), category = "";
  function apply() {
    var visible = 0;
    cards.forEach(function (card) {
      var fits = (!category || card.dataset.category === category) && !(changed && changed.checked && card.dataset.change === "same");
      card.hidden = !fits;
      visible += fits ? 1 : 0;
    });
    shown.textContent = visible + " of " + cards.length + " shown";
  }
  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      category = button.value;
      buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
      apply();
    });
  });
  if (changed) changed.addEventListener("change", apply);
  apply();
})();
