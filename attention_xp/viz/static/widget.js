
// The widget: head_view.js stands above in the same module; anywidget calls `render`.
function render({ model, el }) {
  const { shape: [layers, heads, Sq, Sk], ...rest } = model.get("_about");
  const bytes = (name) => new Uint8Array(model.get(name).buffer, model.get(name).byteOffset, model.get(name).byteLength);
  const codes = bytes("_codes"), size = Sq * Sk;
  const data = { layers, heads, ...rest, thumbs: bytes("_thumbs"), codes: (l, h) => codes.subarray((l * heads + h) * size, (l * heads + h + 1) * size) };
  const onSelect = (layer, head) => {
    model.set("layer", layer);
    model.set("head", head);
    model.save_changes();
  };
  const view = new View(el, data, { layer: model.get("layer"), head: model.get("head"), onSelect });
  const follow = () => {
    if (view.layer !== model.get("layer") || view.head !== model.get("head")) view.select(model.get("layer"), model.get("head"));
  };
  const changes = ["change:layer", "change:head"];
  changes.forEach((change) => model.on(change, follow));
  return () => {
    changes.forEach((change) => model.off(change, follow));
    view.destroy();
  };
}

export default { render };
