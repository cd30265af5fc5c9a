(function () {
  document.documentElement.classList.add("js");
  function list(parent, selector) { return Array.prototype.slice.call(parent.querySelectorAll(selector)); }
  list(document, ".filters").forEach(function (bar) {
    var section = bar.parentNode, cards = list(section, ".card"), wanted = {};
    var search = bar.querySelector("input"), shown = bar.querySelector("output");
    function apply() {
      var words = search.value.trim().toLowerCase(), visible = 0;
      cards.forEach(function (card) {
        var fits = Object.keys(wanted).every(function (key) { return !wanted[key] || card.dataset[key] === wanted[key]; });
        if (fits && words) fits = card.textContent.toLowerCase().indexOf(words) >= 0;
        card.hidden = !fits;
        visible += fits ? 1 : 0;
      });
      shown.textContent = visible + " of " + cards.length + " shown";
    }
    list(bar, ".choice").forEach(function (choice) {
      var buttons = list(choice, "button");
      buttons.forEach(function (button) {
        button.addEventListener("click", function () {
          wanted[choice.dataset.by] = button.value;
          buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
          apply();
        });
      });
    });
    search.addEventListener("input", apply);
    apply();
  });
})();
